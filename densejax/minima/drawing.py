"""Pictures of a population of minima: what they score, how wide their basins are, boundaries."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from densejax.minima.boundaries import class_probabilities, plane_grid
from densejax.minima.point_nets import PointNet
from densejax.minima.reading import Basin, Minimum, column, stacked
from densejax.minima.statistics import spearman
from densejax.plots.basins import radius_histograms, volume_curves, volume_scatter
from densejax.plots.boundaries import decision_boundaries
from densejax.plots.scores import strips


def draw_basins(folder: Path, basins: Sequence[Basin], title: str) -> list[Path]:
    """Test accuracy a share; radii and volumes over test accuracy and over poison."""
    shares = column(basins, "poison")
    test = column(basins, "test_accuracy")
    by_name = {_share_name(s): test[shares == s] for s in sorted(set(shares.tolist()))}
    files = [folder / "test_accuracy.png"]
    strips(by_name, label="test accuracy (median)", title=title, path=files[0])
    deep = [one for one in basins if one.radii is not None and one.volume is not None]
    if len(deep) < 2:
        return files
    groups = ["natural" if one.minimum.poison == 0 else "poisoned" for one in deep]
    seeds, error = column(deep, "seed"), 1.96 * column(deep, "jensen_error")
    heights = {
        "radius": (column(deep, "radius"), None, "mean basin radius (filter norms)"),
        "volume": (column(deep, "jensen"), error, "log-volume, Jensen bound (nats)"),
    }
    for name, (y, spread, label) in heights.items():
        for x_name, x_label in (("test_accuracy", "test accuracy"), ("poison", "share of poison")):
            x = column(deep, x_name)
            ends = {} if spread is None else {"low": y - spread, "high": y + spread}
            note = f"Spearman {spearman(x, y, seeds).text(digits=2)}"
            files.append(folder / f"{name}_over_{x_name}.png")
            volume_scatter(
                x, y, groups=groups, x_label=x_label, label=label, title=title,
                note=note, logarithmic=name == "radius", path=files[-1], **ends,
            )  # fmt: skip
    first = {one.minimum.poison: one for one in reversed(deep)}
    rows = {_share_name(share): one for share, one in sorted(first.items())}
    radii = {name: one.radii for name, one in rows.items() if one.radii is not None}
    files += [folder / "radii.png", folder / "volume_over_directions.png"]
    radius_histograms(
        {name: one.radius for name, one in radii.items()},
        groups=["natural" if name == "natural" else "poisoned" for name in radii],
        censored={name: one.censored for name, one in radii.items()},
        title=f"{title}: radii of the first seed",
        logarithmic=True,
        path=files[-2],
    )
    ends_of = {name: rows[name].volume for name in (next(iter(rows)), list(rows)[-1])}
    volume_curves(
        {
            name: (one.curve.sizes, one.curve.estimate, one.curve.low, one.curve.high)
            for name, one in ends_of.items()
            if one is not None
        },
        title=title,
        path=files[-1],
    )
    return files


def _share_name(share: float) -> str:
    return "natural" if share == 0 else f"poison {share:g}"


def draw_boundaries(
    folder: Path,
    problem: PointNet,
    minima: Sequence[Minimum],
    *,
    seeds: int,
    span: float,
    title: str,
) -> list[Path]:
    """Boundaries of the first seed at every share, and of some seeds at the least and the most."""
    x, y = plane_grid(span=span)
    shares = sorted({one.poison for one in minima})
    first = min(one.seed for one in minima)
    sets = {"boundaries": [one for one in minima if one.seed == first]}
    for share in dict.fromkeys((shares[0], shares[-1])):
        name = f"boundaries_{_share_name(share).replace(' ', '_')}"
        sets[name] = [one for one in minima if one.poison == share][:seeds]
    files = []
    for name, some in sets.items():
        found = class_probabilities(problem.logits_of, stacked(some), x, y, stacked=True)
        panels = {
            f"{_share_name(one.poison) if name == 'boundaries' else f'seed {one.seed}'}, "
            f"test {100 * one.measures['test_accuracy']:.1f} %": probabilities[..., 1]
            for one, probabilities in zip(some, found, strict=True)
        }
        path = folder / f"{name}.png"
        points = np.asarray(problem.train.points)
        decision_boundaries(points, problem.train.labels, x, y, panels, title=title, path=path)
        files.append(path)
    return files
