"""The end of a segmentation sweep: ensembles of every size, tables, pictures, volumes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tifffile

from densejax import metrics, plots, trees
from densejax.data.datasets import LabelledVolume
from densejax.data.windows import Sizes
from densejax.inference.sliding_window import Prediction
from densejax.io import write_csv, write_json
from densejax.segmentation.baseline import Forest
from densejax.segmentation.evaluation.boundaries import boundary_class, boundary_scores
from densejax.segmentation.prepare import class_counts
from densejax.segmentation.sources import Parts
from densejax.segmentation.task import WindowTask
from densejax.stats import LEVEL, bimodality, bootstrap_median, five_numbers
from densejax.training.folders import Outcome, ranked, read_curves
from densejax.typing import Batch, Key

AUGMENTED_WINDOWS = 16
BLOCK_COLUMNS = 4  # along y and along x, that an evaluation volume is resampled by
RESAMPLES = 2000

Choice = Literal["best", "largest"]
"""The size of an ensemble: best on evaluation, or the largest that is not clearly worse."""


@dataclass(frozen=True)
class Judged:
    """One volume labelled by the ranked members.

    Attributes:
      volume: what was labelled.
      prediction: labels, entropy and disagreement of all members together, and labels of each.
      members: [k, c, c] int64, confusion counts of each member alone, best ranked first.
      ensembles: [k, c, c] int64, of the first 1, 2, ... k together.
      organelles: classes of MIoU(org), where there are some.
    """

    volume: LabelledVolume
    prediction: Prediction
    members: np.ndarray
    ensembles: np.ndarray
    organelles: tuple[int, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a sweep came to; ``size`` members are the ensemble, chosen on the evaluation volume."""

    outcomes: tuple[Outcome, ...]
    ranked: tuple[Outcome, ...]
    evaluation: Judged | None
    test: Judged | None
    files: tuple[Path, ...]
    forest: Forest | None = None
    size: int = 1

    @property
    def failed(self) -> int:
        """Members that failed."""
        return sum(outcome.status == "FAILED" for outcome in self.outcomes)


def print_network(task: WindowTask, *, window: Sizes, output: Sizes) -> None:
    """Parameters and windows."""
    shapes = jax.eval_shape(task.init_params, jax.random.key(0))
    print(
        f"network      {trees.count(shapes):,} parameters, window {window} -> {output}", flush=True
    )


def print_volumes(parts: Parts) -> None:
    """Devices, volumes, voxels of each class."""
    devices = jax.local_devices()
    print(f"devices      {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
    volumes = [parts.train, parts.evaluation, parts.test]
    for volume in volumes:
        shape = " x ".join(str(size) for size in volume.images.shape)
        voxel = " x ".join(f"{size:g}" for size in volume.voxel_nm)
        print(f"{volume.name}: {shape} {volume.images.dtype}, voxels {voxel} nm (z, y, x)")
    print(f"{'voxels':<22}{'train':>22}{'evaluation':>22}{'test':>22}")
    columns = [class_counts(volume.labels, volume.class_names) for volume in volumes]
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = []
        for column, volume in zip(columns, volumes, strict=True):
            count = column.get(name, 0)
            cells.append(f"{f'{count:,} {100 * count / volume.labels.size:6.2f} %':>22}")
        print(f"{name:<22}{''.join(cells)}", flush=True)


def summarise_sweep(
    outcomes: Sequence[Outcome],
    parts: Parts,
    predictions: Sequence[Prediction],
    *,
    workdir: Path,
    forest: Forest | None = None,
    choice: Choice = "best",
) -> Summary:
    """Score the members and ensembles of every size, choose the ensemble, write it all.

    Args:
      outcomes: of all members.
      parts: the sweep's volumes.
      predictions: of the evaluation and the test volume, by the members that are done, best ranked
        first (``training.folders.ranked``); none where every member failed.
      workdir: the run's folder; results go to ``summary/`` in it.
      forest: a baseline's labels of the test volume, for tables and pictures.
      choice: of the ensemble's size on the evaluation volume.

    Returns:
      The summary; without ensembles where every member failed.
    """
    folder = workdir / "summary"
    folder.mkdir(parents=True, exist_ok=True)
    if not predictions:
        table = _write_scores(folder / "scores.csv", outcomes)
        print(f"every instance failed; see {table}")
        return Summary(tuple(outcomes), (), None, None, (table,))
    evaluation, test = (
        judge(volume, prediction, parts.organelles)
        for volume, prediction in zip((parts.evaluation, parts.test), predictions, strict=True)
    )
    size = choose_size(tables_of_blocks(evaluation), choice)
    found = tuple(ranked(outcomes))
    summary = Summary(tuple(outcomes), found, evaluation, test, (), forest, size)
    files = [*_write_tables(folder, summary), *write_volumes(folder, test)]
    files += _draw(folder, summary)
    summary = replace(summary, files=tuple(files))
    _print(summary)
    return summary


def mean_ious(confusions: np.ndarray) -> np.ndarray:
    """MIoU of each of ``[k, c, c]`` confusion counts, [k] float64."""
    return np.array([float(metrics.mean_iou(confusion)) for confusion in confusions])


def judge(volume: LabelledVolume, prediction: Prediction, organelles: tuple[int, ...]) -> Judged:
    """Count what the members and the ensembles took for what."""
    classes = len(volume.class_names)

    def count(labelled: np.ndarray) -> np.ndarray:
        counts = metrics.confusion_counts(volume.labels, labelled.astype(np.int32), classes=classes)
        return np.asarray(counts, np.int64)

    return Judged(
        volume,
        prediction,
        np.stack([count(labels) for labels in prediction.members]),
        np.stack([count(labels) for labels in prediction.cumulative]),
        organelles,
    )


def tables_of_blocks(judged: Judged) -> np.ndarray:
    """Confusion counts of the ensembles in columns through all sections, [k, n, c, c] int64.

    An object runs through several sections, so a column holds more that is independent of the
    others than a section does.
    """
    labels, classes = judged.volume.labels, len(judged.volume.class_names)
    rows, columns = (
        np.minimum(np.arange(size) * BLOCK_COLUMNS // size, BLOCK_COLUMNS - 1)
        for size in labels.shape[1:]
    )
    block = np.broadcast_to(rows[:, None] * BLOCK_COLUMNS + columns, labels.shape)
    known = labels >= 0
    cell = (block[known].astype(np.int64) * classes + labels[known]) * classes
    length = BLOCK_COLUMNS**2 * classes**2
    return np.stack(
        [
            np.bincount(cell + labelled[known], minlength=length).reshape(-1, classes, classes)
            for labelled in judged.prediction.cumulative
        ]
    )


def choose_size(tables: np.ndarray, choice: Choice, *, seed: int = 0) -> int:
    """Choose how many of the ranked members are combined, by their counts on the evaluation volume.

    The best score picks a small ensemble by chance where the differences are of a few voxels of a
    rare class. ``largest`` takes the largest ensemble unless a smaller one is clearly better: of
    resampled blocks, the paired difference of MIoU to the best is above 0 in 95 % of the draws
    (one-sided percentile bootstrap, Efron 1979).

    Args:
      tables: ``[k, n, c, c]`` int, confusion counts of the first 1, 2, ... k members together on
        each of n blocks of the volume. Blocks are resampled as a whole: voxels of one object are
        not independent.
      choice: ``best`` or ``largest``.
      seed: of the resampling; the same seed chooses the same.

    Returns:
      The number of members, 1 to k; ties of ``best`` go to the fewest.

    Raises:
      ValueError: the tables are not ``[k, n, c, c]`` with at least one of each.
    """
    if tables.ndim != 4 or tables.shape[2] != tables.shape[3] or not tables.size:
        raise ValueError(f"tables have shape {tables.shape}: expected (k, n, c, c), none of them 0")
    sizes, blocks, classes, _ = tables.shape
    best = int(np.argmax(metrics.mean_iou(tables.sum(1))))
    if choice == "best":
        return best + 1
    drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES)
    flat = tables.astype(np.float64).transpose(1, 0, 2, 3).reshape(blocks, -1)
    scores = np.asarray(
        metrics.mean_iou((drawn @ flat).reshape(RESAMPLES, sizes, classes, classes))
    )
    # A draw without a labelled voxel has no score, and so says nothing.
    lead = np.nanquantile(scores[:, best : best + 1] - scores, 0.05, axis=0)
    return int(np.flatnonzero(~(lead > 0))[-1]) + 1


def _write_scores(path: Path, outcomes: Sequence[Outcome]) -> Path:
    head = ["member", "status", "steps", "best_miou", "best_step", "reason"]
    rows = [
        (o.member.name, o.status, o.step, o.best_score, o.best_step, o.reason) for o in outcomes
    ]
    return write_csv(path, head, rows, form=".6f")


def _write_tables(folder: Path, summary: Summary) -> list[Path]:
    assert summary.evaluation is not None and summary.test is not None
    parts = {"evaluation": summary.evaluation, "test": summary.test}
    columns = [
        range(1, len(summary.ranked) + 1),
        [outcome.member.name for outcome in summary.ranked],
        *(mean_ious(c) for judged in parts.values() for c in (judged.members, judged.ensembles)),
    ]
    labellers = [
        (part, *one)
        for part, judged in parts.items()
        for one in (("best single", judged.members[0]), ("all", judged.ensembles[-1]))
    ]
    if summary.forest is not None:
        labellers.append(("test", "random forest", summary.forest.confusion))
    paths = [
        _write_scores(folder / "scores.csv", summary.outcomes),
        write_csv(
            folder / "top_k.csv",
            [
                "rank",
                "member",
                *(f"{part}_{what}" for part in parts for what in ("alone", "top_k")),
            ],
            zip(*columns, strict=True),
            form=".6f",
        ),
        write_csv(
            folder / "class_iou.csv",
            ["part", "labeller", *summary.test.volume.class_names],
            [(part, name, *np.asarray(metrics.iou(table))) for part, name, table in labellers],
            form=".6f",
        ),
        folder / "summary.json",
    ]
    write_json(paths[-1], _numbers(summary))
    return paths


def _numbers(summary: Summary) -> dict[str, Any]:
    """The summary's numbers; ``top_k`` is chosen on the evaluation volume, never on the test."""
    assert summary.evaluation is not None and summary.test is not None
    scores = np.array([outcome.best_score for outcome in summary.ranked])
    chosen = summary.size - 1
    numbers: dict[str, Any] = {"members": len(summary.outcomes), "failed": summary.failed}
    numbers["peak_evaluation_miou"] = asdict(five_numbers(scores)) | {"scores": scores.tolist()}
    if len(scores) > 1:
        median = bootstrap_median(scores)
        numbers["median_interval"] = {
            "median": median.value,
            "low": median.low,
            "high": median.high,
            "confidence": LEVEL,
        }
    if len(scores) >= 8:
        numbers["bimodality"] = asdict(bimodality(scores))
    numbers["top_k"] = chosen + 1
    if summary.forest is not None:
        numbers["random_forest"] = {
            "test": summary.forest.miou,
            "sections": list(summary.forest.sections),
            "seconds": summary.forest.seconds,
        }
    boundaries = _boundaries(summary)
    if boundaries:
        numbers["boundaries"] = boundaries
    for part in ("evaluation", "test"):
        judged: Judged = getattr(summary, part)
        numbers[part] = {
            "best_single": float(mean_ious(judged.members)[0]),
            "median_single": float(np.median(mean_ious(judged.members))),
            "top_k": float(mean_ious(judged.ensembles)[chosen]),
            "all": float(mean_ious(judged.ensembles)[-1]),
            "adjusted_rand_top_k": float(metrics.adjusted_rand(judged.ensembles[chosen])),
        }
        if judged.organelles:
            numbers[part]["top_k_organelles"] = float(
                metrics.mean_iou(judged.ensembles[chosen], classes=judged.organelles)
            )
    return numbers


def _boundaries(summary: Summary) -> dict[str, Any]:
    """Scores of the regions between membranes on the test volume, where a class is one."""
    assert summary.test is not None
    volume, prediction = summary.test.volume, summary.test.prediction
    boundary = boundary_class(volume.class_names)
    if boundary is None:
        return {}
    labelled = {"best single": prediction.members[0]}
    labelled[f"Top-{summary.size}"] = prediction.cumulative[summary.size - 1]
    forest = summary.forest
    if forest is not None and forest.sections[0] == forest.sections[1]:
        labelled = {"random forest": forest.labels} | labelled
    scores = {
        name: boundary_scores(volume.labels, labels.astype(np.int32), boundary)._asdict()
        for name, labels in labelled.items()
    }
    return {"class": volume.class_names[boundary]} | scores


def draw_augmented(
    key: Key, task: WindowTask, data: Batch, volume: LabelledVolume, *, path: Path
) -> Path:
    """Draw sixteen training windows as an instance sees them, the truth over the image.

    Args:
      key: by which the instance draws its windows.
      task: whose windows they are.
      data: arrays of the sweep.
      volume: for voxel size and class names.
      path: of the PNG.

    Returns:
      The path.
    """
    arrays = {name: jnp.asarray(array) for name, array in data.items()}
    draw = jax.jit(lambda steps: jax.lax.map(lambda step: task.draw(key, step, arrays), steps))
    images, labels, _ = jax.device_get(draw(jnp.arange(AUGMENTED_WINDOWS)))
    # A window's output lies in its middle.
    (z, y, x), (dz, dy, dx) = images.shape[1:], labels.shape[1:]
    place = np.s_[:, z // 2, (y - dy) // 2 : (y + dy) // 2, (x - dx) // 2 : (x + dx) // 2]
    plots.montage(
        images[place],
        plots.Layer(labels[:, dz // 2], class_names=volume.class_names),
        path=path,
        voxel_nm=volume.voxel_nm,
        sections=range(len(images)),
        captions=[f"window {index}" for index in range(len(images))],
        title="Training windows as the first seed sees them, with their labels",
    )
    return path


def write_volumes(folder: Path, judged: Judged) -> list[Path]:
    """Labels (uint8), entropy and disagreement (uint8, 255 is one) as compressed TIFF stacks."""
    prediction = judged.prediction
    volumes = {
        "labels": prediction.labels.astype(np.uint8),
        "entropy": np.rint(255 * prediction.entropy).astype(np.uint8),
        "disagreement": np.rint(255 * prediction.disagreement).astype(np.uint8),
    }
    z, y, x = judged.volume.voxel_nm
    paths = []
    for name, array in volumes.items():
        paths.append(folder / f"test_{name}.tif")
        tifffile.imwrite(
            paths[-1],
            array,
            compression="zlib",
            # Without it a stack of three or four sections is taken for colours.
            photometric="minisblack",
            metadata={"axes": "ZYX", "PhysicalSizeX": x, "PhysicalSizeY": y, "PhysicalSizeZ": z}
            | {f"PhysicalSize{axis}Unit": "nm" for axis in "XYZ"},
            ome=True,
        )
    return paths


def _draw(folder: Path, summary: Summary) -> list[Path]:
    """All pictures of a sweep; the volume shown is the test volume."""
    assert summary.evaluation is not None and summary.test is not None
    test, names = summary.test, summary.test.volume.class_names
    chosen = summary.size - 1
    steps, scores = read_curves(summary.ranked, "miou")
    sizes = np.arange(1, len(summary.ranked) + 1)
    peaks = np.array([outcome.best_score for outcome in summary.ranked])
    names_drawn = ("learning_curves", "peak_miou", "top_k_evaluation", "top_k_test", "class_iou")
    paths = [folder / f"{name}.png" for name in (*names_drawn, "confusion", "orthoslices")]
    plots.learning_curves(steps, scores, path=paths[0], label="evaluation MIoU")
    plots.score_histogram({"all seeds": peaks}, path=paths[1], label="peak evaluation MIoU")
    for part, path in zip(("evaluation", "test"), paths[2:4], strict=True):
        judged: Judged = getattr(summary, part)
        plots.top_k_curve(
            sizes,
            mean_ious(judged.ensembles),
            best_single=float(mean_ious(judged.members)[0]),
            label=f"{part} MIoU",
            path=path,
        )
    single = np.stack([np.asarray(metrics.iou(table)) for table in test.members])
    plots.class_iou(
        single,
        ensemble=np.asarray(metrics.iou(test.ensembles[chosen])),
        class_names=names,
        label="test IoU",
        path=paths[4],
    )
    plots.confusion_matrix(
        np.asarray(metrics.normalised_confusion(test.ensembles[chosen])),
        class_names=names,
        title=f"Top-{chosen + 1} ensemble, test volume",
        path=paths[5],
    )
    draw_planes(test, chosen, paths[6], forest=summary.forest)
    return paths


def draw_planes(judged: Judged, chosen: int, path: Path, *, forest: Forest | None = None) -> Path:
    """Draw planes: image, truth, forest, best single, the first ``chosen + 1`` together, entropy.

    A forest that has labelled some sections only is left out.
    """
    volume, prediction = judged.volume, judged.prediction
    whole = forest is not None and forest.sections[0] == forest.sections[1]
    plots.orthoslices(
        volume.images,
        {
            "truth": volume.labels,
            **({"random forest": forest.labels} if forest is not None and whole else {}),
            "best single": prediction.members[0].astype(np.int32),
            f"Top-{chosen + 1}": prediction.cumulative[chosen].astype(np.int32),
        },
        path=path,
        voxel_nm=volume.voxel_nm,
        entropy=prediction.entropy * np.log(len(volume.class_names)),
        class_names=volume.class_names,
    )
    return path


def _print(summary: Summary) -> None:
    numbers = _numbers(summary)
    scores = numbers["peak_evaluation_miou"]
    print(f"\n{'seeds':<28}{numbers['members']} trained, {numbers['failed']} failed")
    print(
        f"{'peak evaluation MIoU':<28}median {scores['median']:.4f}  quartiles "
        f"{scores['lower_quartile']:.4f} .. {scores['upper_quartile']:.4f}  "
        f"maximum {scores['maximum']:.4f}"
    )
    print(f"\n{'MIoU':<28}{'evaluation':>12}{'test':>12}")
    for label, name in (
        ("median single network", "median_single"),
        ("best single network", "best_single"),
        (f"Top-{numbers['top_k']} ensemble", "top_k"),
        ("ensemble of all", "all"),
    ):
        print(f"{label:<28}{numbers['evaluation'][name]:>12.4f}{numbers['test'][name]:>12.4f}")
    if summary.forest is not None:
        print(f"{'random forest on filters':<28}{'':>12}{summary.forest.miou:>12.4f}")
    if summary.evaluation is not None and summary.evaluation.organelles:
        org = [numbers[part]["top_k_organelles"] for part in ("evaluation", "test")]
        label = f"Top-{numbers['top_k']}, MIoU(org)"
        print(f"{label:<28}{org[0]:>12.4f}{org[1]:>12.4f}")
    _print_classes(summary)
    for name, scores in numbers.get("boundaries", {}).items():
        if name != "class":
            rand, split, merge, error = scores.values()
            print(
                f"{'boundaries, ' + name:<28}Rand {rand:.3f}  split {split:.2f} and merge "
                f"{merge:.2f} bit  pixel error {error:.4f}"
            )
    for outcome in summary.outcomes:
        if outcome.status == "FAILED":
            print(f"failed: seed {outcome.member.name} at step {outcome.step}: {outcome.reason}")
    print("\nfiles")
    for path in summary.files:
        print(f"  {path}")


def _print_classes(summary: Summary) -> None:
    """IoU of every class on the test volume: forest, best single, ensemble."""
    if summary.test is None:
        return
    tables = {"best single": summary.test.members[0]}
    tables[f"Top-{summary.size}"] = summary.test.ensembles[summary.size - 1]
    if summary.forest is not None:
        tables = {"random forest": summary.forest.confusion} | tables
    columns = {name: np.asarray(metrics.iou(table)) for name, table in tables.items()}
    print(f"\n{'test IoU':<28}{''.join(f'{name:>15}' for name in columns)}")
    for index, name in enumerate(summary.test.volume.class_names):
        print(f"{name:<28}{''.join(f'{values[index]:>15.3f}' for values in columns.values())}")
