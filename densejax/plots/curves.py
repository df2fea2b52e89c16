"""Curves: how a population learns, what an ensemble or more labels gain, and rounds of queries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from densejax.plots import scales, style

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
RAMP = ("#9ECAE1", "#0B2C5A")  # of lines that are in order


def learning_curves(
    steps: ArrayLike,
    scores: ArrayLike,
    *,
    label: str = "MIoU",
    title: str = "",
    step_label: str = "training step",
    path: str | Path | None = None,
) -> Figure:
    """Every seed as a grey line, their median over it.

    Args:
      steps: ``[t]`` int, when the scores were taken.
      scores: ``[k, t]`` float; nan where a seed was not evaluated or had failed.
      label: of the vertical axis, with its unit if there is one.
      title: above the axes.
      step_label: of the horizontal axis.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: the shapes do not match, or the name does not end in ``.png``.
    """
    steps, scores = np.asarray(steps), np.asarray(scores, float)
    if steps.ndim != 1 or scores.ndim != 2 or scores.shape[1] != steps.size or not scores.size:
        raise ValueError(
            f"steps has shape {steps.shape} and scores {scores.shape}: expected [t] and [k, t]"
        )
    figure = style.new_figure(4.6, 3.2)
    axes = figure.add_subplot()
    style.dress(axes, x=step_label, y=label)
    # Lines of many seeds must stay apart from one another and yet be seen where there are few.
    alpha = float(np.clip(6 / len(scores), 0.2, 0.6))
    for row in scores:
        seen = np.isfinite(row)
        axes.plot(steps[seen], row[seen], color="#6B7280", alpha=alpha, linewidth=0.8)
    seen = np.isfinite(scores).any(axis=0)
    median = np.nanmedian(scores[:, seen], axis=0)
    axes.plot(steps[seen], median, color="white", linewidth=3.6, solid_capstyle="round")
    (line,) = axes.plot(steps[seen], median, color=style.SERIES_COLOURS[0], linewidth=2.0)
    line.set_label("median")
    one = Line2D([], [], color="#6B7280", linewidth=0.8, label=f"one seed (of {len(scores)})")
    axes.margins(x=0.02)
    style.whole_ticks(axes.xaxis, most=5)
    style.legend(axes, handles=[one, line], title=title)
    return style.save(figure, path)


def top_k_curve(
    sizes: ArrayLike,
    scores: ArrayLike,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    best_single: float | None = None,
    label: str = "MIoU",
    title: str = "",
    band_label: str = "range",
    path: str | Path | None = None,
) -> Figure:
    """Score of the ensemble of the best K members over K; its best size is marked.

    Args:
      sizes: ``[p]`` int, rising, each K.
      scores: ``[p]`` float, the score of each ensemble.
      low: ``[p]`` float, lower edge of a band, given with ``high``.
      high: ``[p]`` float, upper edge of the band.
      best_single: the score of the best member alone, a dashed line.
      label: of the vertical axis.
      title: above the axes.
      band_label: what the band shows.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: the shapes do not match, only one edge of the band is given, or the name does
        not end in ``.png``.
    """
    sizes, scores = np.asarray(sizes), np.asarray(scores, float)
    if (low is None) != (high is None):
        raise ValueError("only one of low and high is given: expected both or neither")
    for name, values in (("scores", scores), ("low", low), ("high", high)):
        if values is not None and (sizes.ndim != 1 or np.shape(values) != sizes.shape):
            raise ValueError(
                f"sizes has shape {sizes.shape} and {name} {np.shape(values)}: expected [p] both"
            )
    figure = style.new_figure(4.6, 3.3)
    axes = figure.add_subplot()
    style.dress(axes, x="members in the ensemble, best first (K)", y=label)
    colour = style.SERIES_COLOURS[0]
    if low is not None and high is not None:
        edges = (np.asarray(low, float), np.asarray(high, float))
        axes.fill_between(sizes, *edges, color=colour, alpha=0.16, linewidth=0, label=band_label)
    if best_single is not None:
        dashes: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.1}
        axes.axhline(best_single, color=style.FAINT, label="best single", **dashes)
    axes.plot(sizes, scores, color=colour, linewidth=1.8, marker="o", markersize=3.4, label="top K")
    best = int(np.nanargmax(scores))
    look = style.ring(8, width=1.6) | {"markerfacecolor": "none"}
    look["markeredgecolor"] = style.SERIES_COLOURS[1]
    words = f"best: K = {sizes[best]}, {scores[best]:.3f}"
    axes.plot(sizes[best], scores[best], linestyle="none", label=words, **look)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.03, y=0.12)
    style.legend(axes, title=title, columns=2)
    return style.save(figure, path)


def round_curves(
    labelled: ArrayLike | Mapping[str, ArrayLike],
    curves: Mapping[str, ArrayLike],
    *,
    intervals: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    published: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    reference: str | None = None,
    ordered: bool = False,
    label: str = "test accuracy",
    x_label: str = "labelled samples",
    band_label: str = "95 % interval of the mean",
    title: str = "",
    logarithmic: bool = False,
    path: str | Path | None = None,
) -> Figure:
    """A score of each strategy over the number of labelled samples, with bands.

    Args:
      labelled: ``[t]`` int, rising; or of each strategy its own costs, by name.
      curves: ``[t]`` float a strategy, by name, in the order of the legend; nan and infinity leave
        a gap.
      intervals: low and high ``[t]`` of a strategy's score.
      published: curves of a paper, (labelled ``[s]``, scores ``[s]``) by name, faint; one that has
        the name of a strategy has its colour.
      reference: the strategy that is dashed and grey, if it is there.
      ordered: whether the others are in order, and are coloured from light to dark.
      label: of the vertical axis, with its unit if there is one.
      x_label: of the horizontal axis.
      band_label: what the bands show.
      title: above the axes.
      logarithmic: of the vertical axis.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no curve, shapes do not match, or the name does not end in ``.png``.
    """
    values = {name: np.asarray(curve, float) for name, curve in curves.items()}
    own = labelled if isinstance(labelled, Mapping) else dict.fromkeys(values, labelled)
    places = {name: np.asarray(own.get(name, ()), float) for name in values}
    wrong = [name for name, curve in values.items() if curve.shape != places[name].shape]
    if wrong or not values or any(x.ndim != 1 for x in places.values()):
        shape = np.shape(next(iter(places.values()), ()))
        raise ValueError(f"labelled {shape} and curves of {wrong or 'nobody'}: expected [t] each")
    x = np.concatenate(list(places.values()))
    figure = style.new_figure(5.4, 3.7)
    axes = figure.add_subplot()
    style.dress(axes, x=x_label, y=label)
    looks = _looks(list(values), reference, ordered)
    for name, curve in values.items():
        if intervals and name in intervals:
            low, high = np.asarray(intervals[name], float)
            axes.fill_between(
                places[name], low, high, color=looks[name]["color"], alpha=0.14, linewidth=0
            )
        seen = np.where(np.isfinite(curve), curve, np.nan)
        axes.plot(places[name], seen, linewidth=1.6, markersize=3.6, label=name, **looks[name])
    for name, (sizes, scores) in (published or {}).items():
        axes.plot(
            np.asarray(sizes, float),
            np.asarray(scores, float),
            color=looks[name]["color"] if name in looks else style.FAINT,
            linewidth=0.9,
            alpha=0.6,
            linestyle=(0, (4, 2)),
            label=f"{name}, published",
        )
    if intervals:
        style.swatch(axes, band_label)
    style.whole_ticks(axes.xaxis)
    axes.margins(x=0.02)
    if not any(np.isfinite(curve).any() for curve in values.values()):
        axes.set_xlim(x.min() - 0.5, x.max() + 0.5)
        axes.set_yticks([])
        middle, size = axes.transAxes, style.TITLE_SIZE
        axes.text(0.5, 0.5, "no finite value", transform=middle, ha="center", fontsize=size)
    elif logarithmic:
        scales.logarithmic_axis(axes.yaxis)
    style.legend(axes, title=title)
    return style.save(figure, path)


def score_of_setting(
    settings: ArrayLike,
    scores: Mapping[str, ArrayLike],
    *,
    levels: Mapping[str, float] | None = None,
    x_label: str = "",
    label: str = "",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """A score over a setting on a logarithmic axis, a point and its interval for each.

    Args:
      settings: ``[p]`` float, positive.
      scores: ``[3, p]`` float by name: middle, low, high; nan where there is none.
      levels: scores that have no such setting, by name: horizontal lines.
      x_label: of the horizontal axis.
      label: of the vertical axis.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no score, the shapes do not match, or the name does not end in ``.png``.
    """
    x = np.asarray(settings, float)
    values = {name: np.asarray(score, float) for name, score in scores.items()}
    wrong = {name: value.shape for name, value in values.items() if value.shape != (3, x.size)}
    if x.ndim != 1 or wrong or not values:
        raise ValueError(f"settings has shape {x.shape} and scores {wrong}: expected [p], [3, p]")
    figure = style.new_figure(5.0, 3.3)
    axes = figure.add_subplot()
    style.dress(axes, x=x_label, y=label)
    for index, (name, height) in enumerate((levels or {}).items()):
        dashes = (0, (4 - 2 * (index % 2), 2))
        axes.axhline(height, color=style.FAINT, linestyle=dashes, linewidth=1.2, label=name)
    looks = _looks(list(values), None, False)
    for index, (name, (middle, low, high)) in enumerate(values.items()):
        shifted = x * 1.04 ** (index - (len(values) - 1) / 2)
        axes.vlines(shifted, low, high, color=looks[name]["color"], linewidth=1.2)
        axes.plot(shifted, middle, linewidth=1.0, markersize=4.5, label=name, **looks[name])
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.xaxis.set_minor_locator(NullLocator())
    style.legend(axes, title=title)
    return style.save(figure, path)


def class_histograms(
    counts: Mapping[str, ArrayLike],
    *,
    class_names: Sequence[str] | None = None,
    label: str = "labelled samples",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """How many samples of each class each strategy has: figures 5.4 and 5.5 of the thesis.

    Args:
      counts: ``[c]`` float a strategy, by name, such as a mean over seeds.
      class_names: c names; None is their numbers, left out above 30 classes.
      label: of the vertical axes.
      title: above all.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no strategy, the shapes or the names do not match, or the name does not
        end in ``.png``.
    """
    values = {name: np.asarray(one, float) for name, one in counts.items()}
    shapes = {one.shape for one in values.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"counts have shapes {sorted(shapes)}: expected [c], the same for all")
    classes = next(iter(shapes))[0]
    names = style.class_names(class_names, classes)
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    figure = style.new_figure(0.8 + 2.3 * columns, 0.7 + 1.7 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for index, (axes, (name, one)) in enumerate(zip(panels, values.items(), strict=False)):
        style.dress(axes, y=label if index % columns == 0 else "", title=name)
        axes.bar(np.arange(classes), one, width=0.8, color=style.series_colour(index))
        axes.axhline(one.mean(), color=style.INK, linewidth=0.8, linestyle=(0, (3, 2)))
        if classes <= 30:
            axes.set_xticks(np.arange(classes), names, rotation=60, ha="right")
            axes.tick_params(axis="x", length=0, labelbottom=index >= len(values) - columns)
    for axes in panels[len(values) :]:
        axes.set_visible(False)
    style.heading(figure, title)
    return style.save(figure, path)


def _looks(names: Sequence[str], reference: str | None, ordered: bool) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of each line, by name."""
    light, dark = (np.array(to_rgb(colour)) for colour in RAMP)
    others = [name for name in names if name != reference]
    looks: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(others):
        share = index / max(len(others) - 1, 1)
        looks[name] = {
            "color": tuple(light + share * (dark - light))
            if ordered
            else style.series_colour(index),
            "linestyle": DASHES[index // len(style.SERIES_COLOURS) % len(DASHES)],
            "marker": style.MARKERS[index % len(style.MARKERS)],
        }
    if reference in names:
        looks[str(reference)] = {"color": style.FAINT, "linestyle": (0, (4, 2))}
    return looks
