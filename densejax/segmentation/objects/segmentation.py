"""The instance segmentation of a labelled volume: objects found, measured, summarised."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax import io
from densejax.data.formats import Box, LazyArray
from densejax.data.ngff import Version
from densejax.data.ome_zarr import create_image, open_level
from densejax.data.pyramid import build_pyramid
from densejax.data.synthetic import platelet_world
from densejax.data.volumes import Volume, open_volume
from densejax.plots import style
from densejax.plots.agreement import object_sizes
from densejax.population import host_cores
from densejax.segmentation.label_blocks import BlockProgress
from densejax.segmentation.label_volumes import Labelling
from densejax.segmentation.objects.block import Connectivity, Library, Selection
from densejax.segmentation.objects.components import CHUNKS, ComponentSearch, Keep
from densejax.segmentation.objects.measures import Objects, measure_objects

PER_UM3 = 1e9  # nm^3 in one cubic micrometre
# Maps of a prediction's folder whose mean over each object is taken.
MAPS = ("disagreement", "entropy")
WORLD_CHUNKS = (16, 64, 64)
LEAST_CHUNK, LARGEST_CHUNK = 2**15, 2**22  # voxels of a chunk that is worth keeping


@dataclass(frozen=True)
class Result:
    """What a run leaves: the objects, and their summary by class (column -> values)."""

    objects: Objects | None
    summary: dict[str, Any]
    failed: int = 0


def resolve_classes(given: Sequence[str], labelling: Labelling) -> tuple[int, ...] | None:
    """The class numbers that are searched.

    Args:
      given: names or numbers; empty for the organelles of a prediction, or else all but class 0.
      labelling: the labels with the names of their classes.

    Returns:
      Class numbers, or None for every label above 0.

    Raises:
      ValueError: a name is not among the class names, or a number has no class.
    """
    names = labelling.class_names
    if not given:
        organelles = (labelling.prediction or {}).get("organelles")
        return tuple(int(label) for label in organelles) if organelles else None
    found = []
    for entry in given:
        if entry in names:
            found.append(names.index(entry))
        elif entry.isdecimal() and (not names or int(entry) < len(names)):
            found.append(int(entry))
        else:
            stated = ", ".join(f"{i} {name}" for i, name in enumerate(names)) or "numbers from 0 on"
            raise ValueError(f"class {entry!r}: expected some of {stated}")
    return tuple(sorted(set(found)))


def write_world(shape: Sequence[int], path: Path) -> None:
    """Write the labels of a synthetic platelet world as an OME-Zarr image; always the same.

    Args:
      shape: (z, y, x), voxels.
      path: of the image; the same one that is there already is written again.

    Raises:
      ValueError: ``shape`` is not three numbers, or too small for a world.
    """
    if len(shape) != 3:
        raise ValueError(f"world {tuple(shape)}: expected z,y,x")
    world = platelet_world(jax.random.key(0), shape=(shape[0], shape[1], shape[2]))
    create_image(
        path,
        shape=world.labels.shape,
        dtype=np.uint8,
        chunks=WORLD_CHUNKS,
        voxel_nm=world.voxel_nm,
        kind="labels",
        class_names=world.class_names,
    )
    open_level(path, write=True).write(world.labels.astype(np.uint8)).result()


def check_finished(labelling: Labelling) -> None:
    """Refuse a prediction that still lacks blocks: objects would end where it has come to.

    Raises:
      ValueError: ``experiments.predict`` has begun the labelling's folder and not ended it.
    """
    folder = labelling.folder
    if folder is None or not (folder / "blocks").is_dir():
        return
    if not (folder / "summary.json").is_file():
        raise ValueError(
            f"{folder} is a prediction that has not ended; expected all of its blocks: the command "
            "that began it goes on with it"
        )


def middle_of(labelling: Labelling, shape: Sequence[int]) -> Labelling:
    """The middle of a labelling, as one that knows where it lies but has no maps beside it.

    Args:
      labelling: the whole.
      shape: (z, y, x) of the part, voxels; an axis that has fewer stays whole.

    Raises:
      ValueError: ``shape`` is not three numbers from 1 on.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"part {tuple(shape)}: expected z,y,x from 1 on")
    whole = labelling.array
    sizes = [min(int(n), full) for n, full in zip(shape, whole.shape, strict=True)]
    start = [(full - n) // 2 for n, full in zip(sizes, whole.shape, strict=True)]

    def read(box: Box) -> np.ndarray:
        z, y, x = (slice(b.start + s, b.stop + s) for b, s in zip(box, start, strict=True))
        return whole[z, y, x]

    z, y, x = (o + s for o, s in zip(labelling.offset or (0, 0, 0), start, strict=True))
    part = LazyArray(tuple(sizes), whole.dtype, read)
    return replace(labelling, array=part, offset=(z, y, x), prediction=None)


def segment_objects(
    labelling: Labelling,
    out: Path,
    *,
    classes: tuple[int, ...] | None,
    keep: Keep,
    connectivity: Connectivity = 26,
    library: Library = "auto",
    version: Version = "0.5",
    threads: int = 0,
) -> Result:
    """Write ``instances.zarr``, ``objects.csv`` and ``objects.parquet``, and a summary.

    The folder ``instances/`` beside them holds ``summary.csv``, ``sizes.png`` and, while the run
    lasts, the results of its blocks, from which a run that was killed goes on. ``objects.csv``
    comes last: where it is, everything is.

    Args:
      labelling: the labels.
      out: the folder.
      classes: the labels that are searched, or None for every label above 0.
      keep: which components become objects.
      connectivity: neighbours of a voxel: 6, 18 or 26.
      library: that labels the components of a block.
      version: of NGFF.
      threads: blocks at once; 0 is one a core.

    Raises:
      ValueError: the labels are no integers, or blocks of another search are there.
      FileExistsError: another ``instances.zarr`` is there.
    """
    path, blocks = out / "instances.zarr", out / "instances" / "blocks"
    summary_file = out / "instances" / "summary.csv"
    if (out / "objects.csv").is_file() and summary_file.is_file():
        print(f"{out / 'objects.csv'} is there: nothing is left to do", flush=True)
        return Result(None, _read_columns(summary_file))
    ignored = () if labelling.unlabelled is None else (labelling.unlabelled,)
    chunks = _chunks(labelling)
    search = ComponentSearch(
        Volume(labelling.array, labelling.voxel_nm, labelling.path),
        blocks,
        selection=Selection(classes, ignored),
        keep=keep,
        connectivity=connectivity,
        library=library,
        chunks=chunks,
        threads=threads,
    )
    components = search.find()
    print(
        f"{components.found:,} components, {len(components.classes):,} of them kept as objects",
        flush=True,
    )
    offset = labelling.offset or (0, 0, 0)
    search.write(
        path,
        attributes={"value": "object", "connectivity": connectivity, "labels": labelling.path},
        version=version,
        offset=offset,
    )
    _add_levels(path, threads or host_cores())
    maps, probabilities = _maps(labelling)
    objects = measure_objects(
        open_volume(path).array,
        classes=components.classes,
        voxel_nm=labelling.voxel_nm,
        origin_nm=[o * v for o, v in zip(offset, labelling.voxel_nm, strict=True)],
        maps=maps,
        probabilities=probabilities,
        folder=blocks / "measured",
        chunks=search.chunks,
        threads=threads,
    )
    summary = _write_tables(objects, math.prod(search.shape), labelling, out)
    shutil.rmtree(blocks)
    return Result(objects, summary)


def _chunks(labelling: Labelling) -> tuple[int, int, int]:
    """Chunks of the objects: those of the labels, unless they are no good size for blocks."""
    stored = labelling.array.chunks
    return stored if LEAST_CHUNK <= math.prod(stored) <= LARGEST_CHUNK else CHUNKS


def _add_levels(path: Path, threads: int) -> None:
    progress: BlockProgress | None = None
    done = 0

    def report(now: int, total: int) -> None:
        nonlocal progress, done
        progress = progress or BlockProgress(total, "add coarser levels")
        progress.update(now - done)
        done = now

    build_pyramid(path, threads=threads, progress=report)
    if progress is not None:
        progress.close()


def _maps(labelling: Labelling) -> tuple[dict[str, Any], Any | None]:
    """What a prediction says of every voxel: maps [z, y, x], and probabilities [c, z, y, x]."""
    folder = labelling.folder
    if folder is None:
        return {}, None
    maps = {
        name: open_volume(folder / f"{name}.zarr").array
        for name in MAPS
        if (folder / f"{name}.zarr").is_dir()
    }
    probabilities = folder / "probabilities.zarr"
    return maps, open_level(probabilities) if probabilities.is_dir() else None


def _write_tables(objects: Objects, voxels: int, labelling: Labelling, out: Path) -> dict[str, Any]:
    names = labelling.class_names
    summary = summarise(objects, voxels, class_names=names)
    columns = object_columns(objects, class_names=names)
    write_csv(summary, out / "instances" / "summary.csv")
    if summary:
        sizes = {
            name: objects.volume_nm3[objects.classes == label]
            for label, name in zip(summary["class"], summary["class_name"], strict=True)
        }
        hues = style.class_colours(max(summary["class"]) + 1)
        object_sizes(
            sizes,
            path=out / "instances" / "sizes.png",
            colours=[hues[label] for label in summary["class"]],
        )
    try:
        write_parquet(columns, out / "objects.parquet")
    except ImportError as error:
        print(f"objects.parquet is not written: {error}", flush=True)
    write_csv(columns, out / "objects.csv")
    return summary


def _read_columns(path: Path) -> dict[str, list[str]]:
    rows = io.read_csv(path)
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def object_columns(objects: Objects, *, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """The columns of the table.

    Args:
      objects: as ``measure_objects`` returns them.
      class_names: of the labels 0, 1, ...; others are named by their number.

    Returns:
      Name -> [n] numpy array, or a list of lists. Voxel indices (``box``, ``centre``) are of the
      volume that was measured; ``box_*_end`` is one beyond the last voxel; ``centre_*_nm`` is from
      the origin of the whole volume. ``neighbours`` are the objects that share a face of a voxel,
      and ``contact_nm2`` the area that each shares.
    """
    count = len(objects.classes)
    names = [_name(label, class_names) for label in objects.classes.tolist()]
    columns: dict[str, Any] = {
        "id": np.arange(1, count + 1, dtype=np.uint32),
        "class": objects.classes,
        "class_name": names,
        "voxels": objects.voxels,
        "volume_nm3": objects.volume_nm3,
        "surface_nm2": objects.surface_nm2,
        "touches_border": objects.touches_border,
    }
    for name, values in (
        ("box_{}", objects.low),
        ("box_{}_end", objects.high),
        ("centre_{}", objects.centre),
        ("centre_{}_nm", objects.centre_nm),
    ):
        columns |= {name.format(letter): values[:, axis] for axis, letter in enumerate("zyx")}
    for name, means in objects.means.items():
        columns[f"mean_{name}"] = means
    columns["neighbours"], columns["contact_nm2"] = _neighbours(objects)
    return columns


def write_csv(columns: Mapping[str, Any], path: Path) -> Path:
    """Write columns as CSV, whole or not at all; lists within a cell are parted by semicolons."""
    rows = zip(*(map(_cell, values) for values in columns.values()), strict=True)
    return io.write_csv(path, list(columns), rows)


def write_parquet(columns: Mapping[str, Any], path: Path) -> Path:
    """Write columns as Parquet, whole or not at all.

    Raises:
      ImportError: pyarrow is not installed; the message names the extra.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("pyarrow is not installed: pip install 'densejax[instances]'") from error
    lists = {
        "neighbours": pyarrow.list_(pyarrow.uint32()),
        "contact_nm2": pyarrow.list_(pyarrow.float64()),
    }
    arrays = {name: pyarrow.array(values, lists.get(name)) for name, values in columns.items()}
    with io.replacing(path) as partial:
        parquet.write_table(pyarrow.table(arrays), partial)
    return path


def summarise(
    objects: Objects, volume_voxels: int, *, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """One row for each class that has objects.

    Args:
      objects: as ``measure_objects`` returns them.
      volume_voxels: of the whole volume, for densities.
      class_names: of the labels 0, 1, ...

    Returns:
      Name -> list with one entry a class: ``objects``, ``at_border`` (of these), ``per_um3`` of the
      whole volume, the share of the volume, quartiles and sum of the volumes, and medians of the
      surface and of the means of maps.
    """
    labels = np.unique(objects.classes).tolist()
    whole = volume_voxels * float(np.prod(objects.voxel_nm))
    rows: list[dict[str, Any]] = []
    for label in labels:
        chosen = objects.classes == label
        volume = objects.volume_nm3[chosen]
        lower, median, upper = np.percentile(volume, (25, 50, 75))
        row = {
            "class": label,
            "class_name": _name(label, class_names),
            "objects": int(chosen.sum()),
            "at_border": int(objects.touches_border[chosen].sum()),
            "per_um3": float(chosen.sum() / whole * PER_UM3),
            "share_of_volume": float(volume.sum() / whole),
            "total_nm3": float(volume.sum()),
            "lower_quartile_nm3": float(lower),
            "median_nm3": float(median),
            "upper_quartile_nm3": float(upper),
            "median_surface_nm2": float(np.median(objects.surface_nm2[chosen])),
        }
        for name, means in objects.means.items():
            row[f"median_{name}"] = float(np.median(means[chosen]))
        rows.append(row)
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary as a table of text for people."""
    shown = {
        "class": "class_name",
        "objects": "objects",
        "at border": "at_border",
        "per um3": "per_um3",
        "% of volume": "share_of_volume",
        "median nm3": "median_nm3",
        "quartiles nm3": "lower_quartile_nm3",
        "median nm2": "median_surface_nm2",
    }
    if not summary:
        return "no objects"
    rows = [list(shown)]
    for i in range(len(summary["class"])):
        row = {name: summary[column][i] for name, column in shown.items()}
        upper = float(summary["upper_quartile_nm3"][i])
        row["quartiles nm3"] = f"{float(row['quartiles nm3']):.3g} {upper:.3g}"
        row["% of volume"] = f"{100 * float(row['% of volume']):.3g}"
        for name in ("per um3", "median nm3", "median nm2"):
            row[name] = f"{float(row[name]):.3g}"
        rows.append([str(value) for value in row.values()])
    widths = [max(len(row[i]) for row in rows) for i in range(len(shown))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)


def _name(label: int, names: Sequence[str] | None) -> str:
    return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"


def _neighbours(objects: Objects) -> tuple[list[list[int]], list[list[float]]]:
    """For each object, the others that it touches, in order, and the areas."""
    count = len(objects.classes)
    both = np.concatenate([objects.pairs, objects.pairs[:, ::-1]])
    areas = np.concatenate([objects.contact_nm2] * 2)
    order = np.lexsort((both[:, 1], both[:, 0]))
    ends = np.cumsum(np.bincount(both[:, 0], minlength=count + 1))[:-1]
    ids = np.split(both[order, 1], ends)[1:]
    shared = np.split(areas[order], ends)[1:]
    return [part.tolist() for part in ids], [part.tolist() for part in shared]


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join(str(_cell(entry)) for entry in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.10g}"
    return value
