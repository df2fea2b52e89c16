"""At equal cost, is one network trained longer better than several that are combined?

From the runs of ``race`` (or any runs of ``experiments.segment`` on the same test volume): every
run's members are grouped into ensembles of 1, 2, 4, 8 that share no member, and each is scored on
the test volume by the run's own windows and views. An ensemble costs its members' share of the
run's CPU seconds, start and prediction included; so ensembles of runs of different lengths lie on
one axis:

    python -m experiments.benchmarks.equal_cost --runs=race/short=180,race/long+race/other=1400

A run is given with the CPU seconds of one of its members; ``+`` joins the members of runs of one
length. Writes ``equal_cost.json``, ``.md`` and
``.png``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from densejax.inference.members import member_probabilities
from densejax.inference.sliding_window import predict_volume
from densejax.inference.tiles import Windowing
from densejax.plots import style
from densejax.segmentation import report, sources
from densejax.segmentation.runs import read_config
from densejax.training.folders import best_parameters
from experiments import segment
from experiments.benchmarks import measure

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)
RUNS = flags.DEFINE_list(
    "runs", [], "folders of runs, each with =CPU seconds of a member", flag_values=FLAGS
)
SIZES = (1, 2, 4, 8)
COLUMNS = ("CPU s a member", "members", "CPU s", "MIoU", "groups")


def groups_of(members: int) -> list[tuple[int, ...]]:
    """Disjoint groups of each size, in the order of the seeds; what is left over is in none."""
    return [
        tuple(range(start, start + size))
        for size in SIZES
        for start in range(0, members - size + 1, size)
    ]


def scores_of(runs: Sequence[Path]) -> dict[int, list[float]]:
    """Test MIoU of the ensembles of each size, of runs of one length and one network.

    Raises:
      FileNotFoundError: no member of a run has ended.
    """
    config = read_config(segment.Config, runs[0])
    parts = sources.load_parts(config)
    model, task = segment.build(config, len(parts.class_names))
    folders = [path.parent for run in runs for path in sorted(run.glob("seeds/*/DONE"))]
    if not folders:
        raise FileNotFoundError(f"{runs[0]}: no member has ended (seeds/*/DONE)")
    stacked, views = best_parameters(folders, task.init_params), config.views or "one"
    members = member_probabilities(task.network, stacked, views=views)
    groups = groups_of(len(folders))

    def together(tile: np.ndarray) -> np.ndarray:
        shares = members(tile)
        return np.stack([shares[list(group)].mean(0) for group in groups])

    tile = sources.three(config.prediction_window or (), "--prediction_window")
    windowing = Windowing(tile, model.output_window(tile), blend=config.blend or "centre")
    prediction = predict_volume(together, parts.test.images, windowing.at(parts.test.voxel_nm))
    judged = report.judge(parts.test, prediction, ())
    found: dict[int, list[float]] = {}
    for group, score in zip(groups, report.mean_ious(judged.members), strict=True):
        found.setdefault(len(group), []).append(float(score))
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """MIoU over the CPU seconds of an ensemble, a line for each number of members."""
    figure = style.new_figure(4.6, 3.0)
    axes = figure.add_subplot()
    style.dress(axes, x="CPU seconds of all members together", y="test MIoU")
    axes.set_xscale("log", base=2)
    for size, colour in zip(SIZES, style.SERIES_COLOURS, strict=False):
        own = sorted((row for row in rows if row["members"] == size), key=lambda row: row["CPU s"])
        for row in own:
            axes.plot([row["CPU s"]] * len(row["scores"]), row["scores"], ".", color=colour, ms=3)
        name = f"{size} member{'s' * (size > 1)}"
        means = [np.mean(row["scores"]) for row in own]
        axes.plot([row["CPU s"] for row in own], means, "o-", ms=4, color=colour, label=name)
    costs = [row["CPU s"] for row in rows]
    doublings = range(int(np.log2(max(costs) / min(costs)) + 0.2) + 1)
    ticks = [min(costs) * 2**i for i in doublings]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    style.legend(axes)
    style.save(figure, path)


def run(argv: Sequence[str]) -> None:
    """Score every run and write the report."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    if not RUNS.value or not all("=" in text for text in RUNS.value):
        raise app.UsageError("--runs=FOLDER=SECONDS,...: expected at least one, each with seconds")
    rows: list[dict[str, Any]] = []
    for text in RUNS.value:
        folder, _, seconds = text.rpartition("=")
        for size, scores in scores_of([Path(part) for part in folder.split("+")]).items():
            middle, spread = np.mean(scores), f"{min(scores):.3f} to {max(scores):.3f}"
            rows.append(
                {
                    "run": Path(folder).name,
                    "CPU s a member": float(seconds),
                    "members": size,
                    "CPU s": size * float(seconds),
                    "MIoU": f"{middle:.3f}" + (f" ({spread})" if len(scores) > 1 else ""),
                    "groups": len(scores),
                    "scores": scores,
                }
            )
    rows.sort(key=lambda row: (row["CPU s"], row["members"]))
    out, where = Path(OUT.value), measure.machine()
    text = f"{measure.heading('Members or length', where, {})}\n{measure.markdown(rows, COLUMNS)}"
    measure.write(out, "equal_cost", result={"machine": where, "rows": rows}, text=text)
    draw(rows, out / "equal_cost.png")


if __name__ == "__main__":
    app.run(run)
