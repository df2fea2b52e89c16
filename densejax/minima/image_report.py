"""What natural and poisoned minima of pictures leave behind: surfaces, basins, claims, a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.landscape.directions import random_plane
from densejax.landscape.surfaces import Surface, surface
from densejax.minima.drawing import draw_basins
from densejax.minima.image_nets import PictureLoss
from densejax.minima.reading import Basin, Minimum, column, measure_basins
from densejax.minima.report import (
    Finding,
    Summary,
    by_share,
    findings_table,
    judge,
    write_table,
)
from densejax.minima.statistics import by_seed, mean_interval, weighted_mean
from densejax.plots.relief import surface_3d
from densejax.plots.surfaces import SurfaceStyle, contours
from densejax.typing import Key

# Beyond so many times the cutoff a surface is cut off in pictures; its file has it all.
HIGHEST = 100.0


def summarise(
    key: Key,
    loss: PictureLoss,
    minima: Sequence[Minimum],
    *,
    folder: Path,
    title: str,
    failed: int = 0,
    points: int = 51,
    surface_span: float = 1.0,
    directions: int = 3000,
    cutoff: float = 0.1,
    **options: Any,
) -> Summary:
    """Draw surfaces, measure basins, write tables and findings.

    Args:
      key: of the planes and directions, the same for all minima.
      loss: about them.
      minima: natural ones (poison 0) and poisoned ones.
      folder: takes the files; surfaces and radii that are there already are not computed again.
      title: of the pictures.
      failed: members that left no minimum.
      points: of a surface along each axis; 0 draws none.
      surface_span: half of its axes, in lengths of its filter-normalised directions.
      directions: of each basin; 0 measures none.
      cutoff: loss at which a basin ends.
      options: of ``radii_of_many``.

    Returns:
      Basins, findings and files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plane_key, basin_key = jax.random.split(key)
    files = []
    if points:
        drawn = surfaces(plane_key, loss, minima, folder=folder, points=points, span=surface_span)
        files += draw_surfaces(folder, drawn, title=title, cutoff=cutoff)
    basins = [Basin(one) for one in minima]
    if directions:
        basins = measure_basins(
            basin_key,
            loss,
            minima,
            folder=folder / "radii",
            directions=directions,
            cutoff=cutoff,
            **options,
        )
    findings = find(basins)
    files += [write_table(folder / "minima.csv", basins), folder / "findings.md"]
    lines = [f"# {title}", "", *findings_table(findings), "", *by_share(basins)]
    files[-1].write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    files += draw_basins(folder, basins, title) if basins else []
    return Summary(tuple(basins), tuple(findings), tuple(files), failed)


def surfaces(
    key: Key,
    loss: PictureLoss,
    minima: Sequence[Minimum],
    *,
    folder: Path,
    points: int,
    span: float,
) -> dict[str, Surface]:
    """Loss and accuracy on a random plane through the first minimum of each share of poison.

    Args:
      key: of the two filter-normalised directions; the same numbers for all.
      loss: about the minima.
      minima: of which the first of each share is taken.
      folder: takes ``surfaces/<name>.npz``, which are resumed.
      points: along each axis.
      span: half the length of each axis.

    Returns:
      Surfaces by share, such as ``natural`` or ``poison 0.35``, least poison first.
    """
    first = {one.poison: one for one in reversed(minima)}
    kept = folder / "surfaces"
    kept.mkdir(parents=True, exist_ok=True)
    found = {}
    for share, one in sorted(first.items()):
        plane = random_plane(key, one.variables)
        name = f"poison {share:g}" if share else "natural"
        file = kept / f"{one.name}.npz"
        found[name] = surface(loss.measures, plane, points=points, span=span, file=file)
    return found


def draw_surfaces(
    folder: Path, drawn: dict[str, Surface], *, title: str, cutoff: float
) -> list[Path]:
    """Contours of all on one logarithmic scale, and the relief of each."""
    if not drawn:
        return []
    grid = next(iter(drawn.values()))
    values = {name: one.values["loss"] for name, one in drawn.items()}
    least = min(float(np.nanmin(loss)) for loss in values.values())
    limits = (max(least, 1e-6), HIGHEST * cutoff)
    style = SurfaceStyle(log=True, limits=limits, label="training loss")
    files = [folder / "surfaces.png"]
    contours(grid.x, grid.y, values, style=style, title=title, path=files[0])
    for name, loss in values.items():
        files.append(folder / f"surface_{name.replace(' ', '_')}.png")
        heading = f"{title}: {name}"
        surface_3d(grid.x, grid.y, loss, style=style, title=heading, path=files[-1])
    return files


def find(basins: Sequence[Basin]) -> list[Finding]:
    """The claims of the thesis on SVHN that these minima can speak to."""
    seeds, poison = column(basins, "seed"), column(basins, "poison")
    if not len(poison) or not (poison == 0).any() or poison.max() == 0:
        return []
    most = poison == poison.max()
    train = mean_interval(column(basins, "train_accuracy"), seeds)
    bad = mean_interval(column(basins, "test_accuracy")[most], seeds[most])
    share = f"{poison.max():g} of poison"
    found = [
        judge(
            "train accuracy of all minima is above 0.99",
            train,
            side="above",
            level=0.99,
            published="100 %",
        ),
        Finding(f"test accuracy with {share}", "28.2 % (README: 29 %)", "", bad.text()),
    ]
    for name, what in (
        ("test_accuracy", "natural minima have the higher test accuracy"),
        ("radius", "natural basins are wider (mean radius)"),
        ("jensen", "natural basins are larger (Jensen bound of the log-volume, nats)"),
    ):
        values = column(basins, name)
        if np.isfinite(values[most]).any():
            found.append(_gap(f"{what} than with {share}", name, poison, values, seeds))
    return found


def _gap(
    claim: str, name: str, poison: np.ndarray, values: np.ndarray, seeds: np.ndarray
) -> Finding:
    """Natural minus most poisoned, means over seeds."""

    def gap(columns: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        shares, numbers = columns
        natural = weighted_mean(numbers, weights * (shares == 0))
        return natural - weighted_mean(numbers, weights * (shares == poison.max()))

    difference = by_seed(gap, (poison, values), seeds)
    digits = 0 if name == "jensen" else 4
    return judge(claim, difference, side="above", published="yes", digits=digits)
