"""The table of a volume's objects, one row each, and the summary of each class, also as text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densejax import io
from densejax.segmentation.objects.measures import Objects

PER_UM3 = 1e9  # nm^3 in one cubic micrometre


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
