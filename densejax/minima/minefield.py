"""What a minefield leaves behind: embeddings, their pictures, and claims with verdicts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from densejax.io import write_npz, write_text
from densejax.minima.boundaries import class_probabilities, plane_grid
from densejax.minima.embedding import embed, kernel_vectors, outliers
from densejax.minima.point_nets import PointNet
from densejax.minima.reading import Basin, Minimum, column, read_minima, scores, stacked
from densejax.minima.report import Summary, write_basins
from densejax.plots.boundaries import decision_boundaries, minefield
from densejax.stats import Finding, findings_table, spearman_by_seed
from densejax.typing import Params

GOOD, BAD = "good run", "bad minimum"
PANELS = 4  # bad minima whose boundaries are drawn


def summarise(
    workdir: Path,
    starts: Params,
    epochs: np.ndarray,
    *,
    claims: Callable[[Mapping[str, np.ndarray], Sequence[Basin]], list[Finding]],
    perplexities: Sequence[float],
    components: int,
    seeds: Sequence[int],
    deviations: float,
) -> Summary:
    """Embed the good run and the bad minima, draw, report.

    Args:
      workdir: folder of the run, whose members have the setting ``start``.
      starts: variables of the good run from which they started, stacked [t, ...].
      epochs: [t] int, of the good run.
      claims: judges what the experiment asks of the measures along the good run, [t] by name, and
        of the bad minima.
      perplexities: of t-SNE.
      components: principal components that it sees.
      seeds: of t-SNE; the first one's is ``minefield.png``.
      deviations: by which an outlier is off in both coordinates.

    Returns:
      The minima (as basins without radii), findings and files.
    """
    folder = workdir / "summary"
    folder.mkdir(parents=True, exist_ok=True)
    problem, minima, failed = read_minima(workdir)
    score = jax.jit(jax.vmap(lambda variables: scores(problem, variables)))
    path = {name: np.asarray(values) for name, values in score(starts).items()}
    basins = [Basin(one) for one in minima]
    vectors = np.concatenate([kernel_vectors(starts), kernel_vectors(stacked(minima))])
    kinds = np.array([GOOD] * len(epochs) + [BAD] * len(minima))
    accuracy = np.concatenate([path["test_accuracy"], column(basins, "test_accuracy")])
    files, left_out = [write_basins(folder / "minima.csv", basins)], {}
    for seed in seeds:
        maps = embed(vectors, perplexities=perplexities, components=components, seed=seed)
        away = {
            perplexity: outliers(places, candidates=kinds == BAD, deviations=deviations)
            for perplexity, places in maps.items()
        }
        left_out[seed] = [int(some.sum()) for some in away.values()]
        name = "minefield" if seed == seeds[0] else f"minefield_seed{seed}"
        shown = {p: np.where(away[p][:, None], np.nan, places) for p, places in maps.items()}
        minefield(
            shown,
            kinds,
            accuracy,
            final=len(epochs) - 1,
            joined=(GOOD,),
            path=folder / f"{name}.png",
        )
        arrays = {f"perplexity_{p:g}": places for p, places in maps.items()}
        fixed = {"kinds": kinds, "test_accuracy": accuracy}
        write_npz(folder / f"{name}.npz", fixed | arrays)
        files += [folder / f"{name}.png", folder / f"{name}.npz"]
    files.append(_draw_boundaries(folder, problem, starts, epochs, path, minima))
    findings = claims(path, basins)
    lines = [
        "# Minefield",
        "",
        f"{len(minima)} bad minima from as many places of a good run of {epochs[-1]} epochs; "
        f"{len(failed)} failed. Left out of the pictures as more than {deviations:g} standard "
        f"deviations off in both coordinates, at perplexities {list(perplexities)}: "
        + "; ".join(f"seed {seed} {counts}" for seed, counts in left_out.items())
        + ". The picture shows neighbourhoods; sizes and distances in it carry no meaning.",
        "",
        _living(problem, starts, epochs, minima),
        "",
        *findings_table(findings),
    ]
    write_text(folder / "findings.md", "\n".join(lines) + "\n")
    files.append(folder / "findings.md")
    print(f"{len(minima)} bad minima, {len(failed)} failed; see {folder}")
    return Summary(tuple(basins), tuple(findings), tuple(files), len(failed))


def _living(
    problem: PointNet, starts: Params, epochs: np.ndarray, minima: Sequence[Minimum]
) -> str:
    """A unit that fires nowhere has no gradient: a restart has to do with those that live."""
    points = np.concatenate([part.points for part in (problem.train, problem.poison, problem.test)])

    def count(variables: Params) -> jax.Array:
        hidden = problem.hidden(variables, points)
        return jnp.stack([jnp.any(layer > 0, axis=0).sum() for layer in hidden])

    units = np.asarray(jax.jit(jax.vmap(count))(starts))
    places = [int(one.settings["start"]) for one in minima]
    train = np.array([one.measures["train_accuracy"] for one in minima])
    related = spearman_by_seed(units[places].sum(axis=1), train, np.zeros(len(train), int))
    return (
        f"Hidden units that fire on any of the points, layer by layer: {units[0].tolist()} after "
        f"epoch {epochs[0]}, {units[-1].tolist()} after epoch {epochs[-1]}, of "
        f"{list(problem.widths)}. Spearman's correlation of their number at a start with the "
        f"training accuracy of the minimum found from there: {related.text(digits=2)}."
    )


def _draw_boundaries(
    folder: Path,
    problem: PointNet,
    starts: Params,
    epochs: np.ndarray,
    path: dict[str, np.ndarray],
    minima: Sequence[Minimum],
) -> Path:
    """The end of the good run, and bad minima from evenly spaced places of it."""
    x, y = plane_grid(span=25.0)
    rows = np.unique(np.linspace(0, len(minima) - 1, PANELS).round().astype(int))
    some = [minima[row] for row in rows]
    good = jax.tree.map(lambda leaf: np.asarray(leaf)[-1], starts)
    fields = [class_probabilities(problem.logits_of, good, x, y)]
    fields += list(class_probabilities(problem.logits_of, stacked(some), x, y, stacked=True))
    accuracies = [path["test_accuracy"][-1], *(one.measures["test_accuracy"] for one in some)]
    names = ["good run", *(f"from epoch {epochs[int(one.settings['start'])]}" for one in some)]
    panels = {
        f"{name}, test {100 * value:.1f} %": field
        for name, value, field in zip(names, accuracies, fields, strict=True)
    }
    target = folder / "boundaries.png"
    points = np.asarray(problem.train.points)
    decision_boundaries(points, problem.train.labels, x, y, panels, title="minefield", path=target)
    return target
