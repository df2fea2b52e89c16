"""What the values of a label file mean: which classes, not labelled, or objects that are counted.

The one place where every command turns the values of a file into classes 0, 1, ... and -1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from densejax.data.formats import LazyArray
from densejax.typing import UNLABELLED

MOST_VALUES = 20  # of a file of classes: with more, and more than there are names, it holds objects
_EDGES = "and 2 along the borders between objects that touch"


def check_values(
    values: Sequence[int], unlabelled: int | None, *, classes: int | None = None
) -> None:
    """Refuse flags that contradict one another, before any file is read.

    Args:
      values: of ``--label_values``; empty where it is not given.
      unlabelled: of ``--unlabelled``.
      classes: how many names there are, where that is known.

    Raises:
      ValueError: the flags are named.
    """
    flag = f"--label_values={_text(values)}"
    if not values:
        return
    if len(set(values)) != len(values):
        raise ValueError(f"{flag}: a value occurs twice; expected one for each class")
    if classes is not None and len(values) != classes:
        raise ValueError(
            f"{flag} gives {len(values)} values and --class_names {classes} names; expected a "
            "value for each name, in their order"
        )
    if unlabelled in values:
        raise ValueError(f"{flag} and --unlabelled={unlabelled}: the value cannot be both")
    if UNLABELLED in values:
        raise ValueError(f"{flag}: {UNLABELLED} means not labelled and is no class")


def as_classes(
    found: np.ndarray,
    *,
    values: Sequence[int] = (),
    unlabelled: int | None = None,
    name: str = "labels",
) -> np.ndarray:
    """Return labels as classes 0, 1, ... and -1, from what a file holds.

    Args:
      found: ``[...]`` integer or bool as stored; bool is two classes.
      values: the stored value of each class, in order; empty where it is the class's number.
      unlabelled: the value that means not labelled, besides -1.
      name: what the message calls the labels.

    Returns:
      ``[...]``, the array itself (bool as uint8) where nothing is asked for; otherwise int32 with
      ``values``, int64 without.

    Raises:
      ValueError: a value is neither one of ``values`` nor not labelled, or labels are no integers.
    """
    if found.dtype == bool:
        found = found.view(np.uint8)
    if not values and unlabelled is None:
        return found
    if found.dtype.kind not in "iu":
        raise ValueError(f"{name}: labels are {found.dtype}; expected integers")
    missing = found == UNLABELLED
    if unlabelled is not None:
        missing |= found == unlabelled
    if not values:
        return np.where(missing, UNLABELLED, found.astype(np.int64))
    classes = np.full(found.shape, UNLABELLED, np.int32)
    known = missing
    for index, value in enumerate(values):
        here = found == value
        classes[here] = index
        known = known | here
    if not known.all():
        place = tuple(int(i) for i in np.argwhere(~known)[0])
        others = np.unique(found[~known])
        raise ValueError(
            f"{name}: value {int(found[place])} at {place} is none of "
            f"--label_values={_text(values)}, nor {UNLABELLED} for not labelled "
            f"({len(others)} such {'value' if len(others) == 1 else 'values'} in all; "
            f"--unlabelled={int(others[0])} would leave {'it' if len(others) == 1 else 'one'} out)"
        )
    return classes


def relabelled(
    array: LazyArray,
    *,
    values: Sequence[int] = (),
    unlabelled: int | None = None,
    name: str = "labels",
) -> LazyArray:
    """Return an array whose boxes come as ``as_classes`` makes them; itself where nothing changes.

    Args:
      array: [z, y, x] as stored, read where it is sliced.
      values: as in ``as_classes``.
      unlabelled: as in ``as_classes``.
      name: what messages call the labels.
    """
    if array.dtype != bool and not values and unlabelled is None:
        return array
    dtype: Any = np.int32 if values else np.uint8 if unlabelled is None else np.int64

    def read(box: Any) -> np.ndarray:
        return as_classes(array[box], values=values, unlabelled=unlabelled, name=name)

    return LazyArray(array.shape, dtype, read, chunks=array.chunks)


def advice(found: np.ndarray, class_names: Sequence[str], *, unlabelled: int | None = None) -> str:
    """Return what would make sense of values that are not 0, 1, ... of the classes; else nothing.

    Args:
      found: ``[...]`` labels as stored.
      class_names: the c names.
      unlabelled: the value that is known to mean not labelled.
    """
    if found.dtype.kind not in "biu":
        return ""
    stored = [int(value) for value in np.unique(found)]
    values = [value for value in stored if value not in (UNLABELLED, unlabelled)]
    classes = len(class_names)
    if not values or (values[0] >= 0 and values[-1] < classes):
        return ""
    if len(values) > max(MOST_VALUES, classes + 1):
        return (
            f"There are {len(values):,} values up to {values[-1]}, one for each object, it seems: "
            "these are instance ids, and a network learns classes. Make a file of classes first: "
            f"0 where they are 0 and 1 elsewhere (labels > 0), {_EDGES}; experiments.instances "
            "finds the objects of a prediction"
        )
    ways = []
    if len(values) == classes:
        ways.append(f"--label_values={_text(values)} takes them as {', '.join(class_names)}")
    if len(values) == classes + 1 and unlabelled is None:
        plain = values[:-1] == list(range(classes))
        for left_out in (
            (values[-1],) if plain and values[-1] > classes else (values[0], values[-1])
        ):
            rest = [value for value in values if value != left_out]
            shift = f" --label_values={_text(rest)}" if rest != list(range(classes)) else ""
            ways.append(f"--unlabelled={left_out}{shift}, if {left_out} means not labelled,")
        ways[-1] = ways[-1].rstrip(",")
    shown = f"The values are {_text(values, ', ')}"
    if not ways:
        return (
            f"{shown}: expected one for each of the {classes} names of --class_names, and then "
            "--label_values gives their order and --unlabelled what does not count"
        )
    return f"{shown}: " + " or ".join(ways)


def _text(values: Sequence[int], between: str = ",") -> str:
    return between.join(str(value) for value in values)
