"""The minefield: many networks as points of a plane, by PCA and t-SNE of their kernels.

After the minefield of Huang, Emam et al. 2020 (figure 1) and of the thesis' chapter 3. What such a
picture can show is which points are neighbours. Sizes of clusters and distances between them carry
no meaning, and clusters appear in noise at small perplexities (Wattenberg et al. 2016, How to use
t-SNE effectively): look at several perplexities, and at more than one seed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from densejax.io import write_npz, write_text
from densejax.minima.point_nets import PointNet, class_probabilities, plane_grid
from densejax.minima.reading import Basin, Minimum, column, read_minima, scores, stacked
from densejax.minima.report import Summary, write_basins
from densejax.plots.boundaries import decision_boundaries, minefield
from densejax.stats import Finding, findings_table, spearman_by_seed
from densejax.typing import Array, Params

GOOD, BAD = "good run", "bad minimum"
PANELS = 4  # bad minima whose boundaries are drawn
PUBLISHED_PERPLEXITIES = (5, 30, 50, 100)


def kernel_vectors(params: Params) -> np.ndarray:
    """All kernels of many networks side by side; biases and norms' factors are left out.

    Args:
      params: stacked, every leaf [k, ...]; leaves with two axes of their own or more are kernels.

    Returns:
      [k, d] float32, kernels in the order of the tree, each in row-major order.

    Raises:
      ValueError: no leaf is a kernel.
    """
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if np.ndim(leaf) >= 3]
    if not kernels:
        raise ValueError("no leaf has two axes beside the instances': expected stacked kernels")
    flat = [leaf.reshape(len(leaf), -1) for leaf in kernels]
    return np.concatenate(flat, axis=1).astype(np.float32)


def embed(
    vectors: Array,
    *,
    perplexities: Sequence[float] = PUBLISHED_PERPLEXITIES,
    components: int = 50,
    seed: int = 0,
) -> dict[float, np.ndarray]:
    """Principal components, then t-SNE from a random start, at several perplexities.

    With the learning rate, 200, of the library that the released code names.

    Args:
      vectors: [n, d] floating.
      perplexities: of t-SNE, each below n; about the number of neighbours that count.
      components: kept of the principal ones; fewer where n or d is smaller.
      seed: of both, an integer.

    Returns:
      [n, 2] float32 by perplexity, in units without meaning.

    Raises:
      ValueError: ``vectors`` is not [n, d], not finite, or a perplexity is not in (0, n).
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = np.asarray(vectors)
    if points.ndim != 2 or min(points.shape) < 1:
        raise ValueError(f"vectors has shape {points.shape}: expected [n, d]")
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise ValueError(f"vectors: row {row} is not finite")
    for perplexity in perplexities:
        if not 0 < perplexity < len(points):
            raise ValueError(
                f"perplexity {perplexity} of {len(points)} points: expected more than 0 and less "
                "than the number of points"
            )
    kept = min(components, *points.shape)
    reduced = PCA(n_components=kept, random_state=seed).fit_transform(points)
    return {
        perplexity: TSNE(
            n_components=2,
            init="random",
            learning_rate=200.0,
            perplexity=perplexity,
            random_state=seed,
        ).fit_transform(reduced)
        for perplexity in perplexities
    }


def outliers(
    embedding: Array, *, candidates: Array | None = None, deviations: float = 1.5
) -> np.ndarray:
    """Points that the published picture leaves out: far off in both coordinates.

    A point is an outlier if it is more than ``deviations`` standard deviations from the mean in the
    first coordinate and in the second. The released code says 2 in a comment and takes 1.5, and
    carries the points left out at one perplexity on to the next; here each picture stands alone.

    Args:
      embedding: [n, 2] of all points.
      candidates: [n] bool, which may be left out (published: the bad minima); None is all.
      deviations: in standard deviations of each coordinate, over all points.

    Returns:
      [n] bool.

    Raises:
      ValueError: the shapes do not match.
    """
    points = np.asarray(embedding, np.float64)
    may = np.ones(len(points), bool) if candidates is None else np.asarray(candidates, bool)
    if points.ndim != 2 or may.shape != points.shape[:1]:
        raise ValueError(
            f"embedding {points.shape} and candidates {may.shape}: expected [n, 2] and [n]"
        )
    far = np.abs(points - points.mean(axis=0)) > deviations * points.std(axis=0)
    return far.all(axis=1) & may


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
