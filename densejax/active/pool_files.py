"""A pool of files: opened without being read, and checked to agree."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from densejax.active import files
from densejax.active.pool import CHUNK_BYTES, Pool

AXES = {
    "features": ("n", "d"),
    "logits": ("n", "c"),
    "probabilities": ("n", "c"),
    "passes": ("n", "m", "c"),
}
FILES = (*AXES, "weights", "labels", "labelled", "held_out")


def open_pool(paths: Mapping[str, str]) -> Pool:
    """The pool of the files, none of them read but for indices, labels and the head.

    Args:
      paths: of ``FILES``, by name; one that is empty or absent is not given.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is not what it should be, or the files do not agree.
    """
    given = {name: path for name in FILES if (path := paths.get(name, ""))}
    if not set(given) & {*AXES, "labels"}:
        raise ValueError(f"a pool needs a file of {', '.join(AXES)} or labels; found {given}")
    arrays = {
        name: files.open_array(given[name], axes=axes)
        for name, axes in AXES.items()
        if name in given
    }
    sizes = {given[name]: array.shape[0] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{path} has {size}" for path, size in sizes.items())
        raise ValueError(f"the files of a pool must have as many rows: {found}")
    kernel, bias = files.open_head(given["weights"]) if "weights" in given else (None, None)
    _check_widths(given, arrays, kernel)
    size = next(iter(sizes.values())) if sizes else None
    if size is None:
        size = files.open_array(given["labels"], axes=("n",), integer=True).shape[0]
    classes = {int(a.shape[-1]) for name, a in arrays.items() if name != "features"}
    classes |= set() if kernel is None else {kernel.shape[1]}
    for name in ("probabilities", "passes"):
        if name in arrays:
            files.check_probabilities(arrays[name], given[name])
    labels = None
    if "labels" in given:
        labels = files.open_labels(given["labels"], size, next(iter(classes), None))
    members = {
        name: files.open_members(given[name], size)
        for name in ("labelled", "held_out")
        if name in given
    }
    return Pool(**arrays, kernel=kernel, bias=bias, labels=labels, **members)


def _check_widths(
    given: Mapping[str, str], arrays: Mapping[str, Any], kernel: np.ndarray | None
) -> None:
    if kernel is not None and "features" in arrays and arrays["features"].shape[1] != len(kernel):
        shape = tuple(arrays["features"].shape)
        turned = " (is it [c, d]?)" if kernel.shape[1] == shape[1] else ""
        raise ValueError(
            f"{given['features']} {shape} and the kernel {kernel.shape} of {given['weights']} do "
            f"not fit: expected [n, d] and [d, c]{turned}"
        )
    classes = {given[name]: int(a.shape[-1]) for name, a in arrays.items() if name != "features"}
    if kernel is not None:
        classes[given["weights"]] = kernel.shape[1]
    if len(set(classes.values())) > 1:
        found = ", ".join(f"{path} has {count}" for path, count in classes.items())
        raise ValueError(f"the files of a pool must have as many classes: {found}")


def memory_estimate(pool: Pool, *, partitions: int = 1) -> int:
    """About how many bytes a query takes beyond the program: chunks on their way, parts, values.

    Args:
      pool: of files.
      partitions: random parts of it, one of which is in memory; 1 is none.
    """
    arrays = [getattr(pool, name) for name in AXES if getattr(pool, name) is not None]
    stored = sum(4 * int(np.prod(array.shape, dtype=np.int64)) for array in arrays)
    part = stored // partitions if partitions > 1 else 0
    return min(8 * CHUNK_BYTES, 2 * stored) + part + 32 * pool.size
