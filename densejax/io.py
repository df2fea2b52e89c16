"""Files that are whole or absent, tables, and whether a folder holds the same run.

Whatever is written here is written under a temporary name in the same folder and renamed: a process
killed at any moment leaves the old file (or none) and never half a one; a write that fails leaves
nothing. Temporary names are hidden and differ between writers, so that several processes may write
the same file: the last one counts, and readers see one or the other. This module imports no jax.
"""

import contextlib
import csv
import errno
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

WITHOUT_ROOM = (errno.ENOSPC, errno.EDQUOT)
ABSENT = "absent"
ADVICE = "Name another workdir, or give the values that it was begun with."


@contextlib.contextmanager
def replacing(
    path: str | Path, *, durable: bool = False, overwrite: bool = True, alone: bool = False
) -> Iterator[Path]:
    """Yield a temporary path whose file takes the place of another once it is whole.

    Args:
      path: of the file; its folder is made if absent.
      durable: wait until the content is on the disk before the rename, so that not even a loss of
        power leaves a file that is named but empty.
      overwrite: whether an older file is replaced; where not, a file that another process makes
        meanwhile is left as it is.
      alone: nobody else writes this file: the temporary name is fixed, so that what a killed
        process has left is written over. For large files.

    Yields:
      The temporary path, hidden, in the same folder; removed if the block raises.

    Raises:
      FileExistsError: the file is there and may not be replaced.
      OSError: it cannot be written; where the disk is full, the message says which, what is free on
        it and what to do.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path, alone)
    try:
        yield partial
        if durable:
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
        if overwrite:
            partial.replace(path)
        else:
            _link(partial, path)
    except OSError as error:
        if advice := full_disk(error, path.parent):
            raise OSError(f"{path} could not be written: {error}{advice}") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def publishing(folder: str | Path, *, alone: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes its place by one rename once it is filled.

    Args:
      folder: where it will be; its parent is made if absent.
      alone: as for ``replacing``; a leftover is cleared away.

    Yields:
      The temporary folder, hidden, beside it; removed if the block raises.

    Raises:
      FileExistsError: another process has published the folder meanwhile.
    """
    folder = Path(folder)
    partial = _partial(folder, alone)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            partial.rename(folder)
        except OSError as error:
            if folder.exists():
                raise FileExistsError(f"{folder} is there already: {error}") from error
            raise
    except OSError as error:
        if advice := full_disk(error, folder.parent):
            raise OSError(f"{folder} could not be written: {error}{advice}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(
    path: str | Path,
    text: str,
    *,
    durable: bool = False,
    overwrite: bool = True,
    alone: bool = False,
) -> Path:
    """Write a text in UTF-8, whole or not at all; options as of ``replacing``; return the path."""
    content = text.encode()
    return write_bytes(path, content, durable=durable, overwrite=overwrite, alone=alone)


def write_bytes(
    path: str | Path,
    content: bytes,
    *,
    durable: bool = False,
    overwrite: bool = True,
    alone: bool = False,
) -> Path:
    """Write bytes, whole or not at all; options as of ``replacing``; return the path."""
    with replacing(path, durable=durable, overwrite=overwrite, alone=alone) as partial:
        partial.write_bytes(content)
    return Path(path)


def write_json(
    path: str | Path, value: Any, *, indent: int | None = 1, durable: bool = False
) -> Path:
    """Write a value as JSON with a line's end, whole or not at all; return the path."""
    return write_text(path, json.dumps(value, indent=indent) + "\n", durable=durable)


def without_nan(value: Any) -> Any:
    """A value as JSON can say it: what is no finite number is None."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}") from error


def write_once(path: str | Path, value: Any) -> Any:
    """Write JSON to a file that several processes may be the first to write.

    Returns:
      What the file holds: ``value``, or what another process wrote before.
    """
    with contextlib.suppress(FileExistsError):
        write_text(path, json.dumps(value, indent=1) + "\n", overwrite=False)
    return read_json(path)


def write_npz(
    path: str | Path,
    arrays: Mapping[str, Any],
    *,
    compressed: bool = False,
    durable: bool = False,
    alone: bool = False,
) -> Path:
    """Write arrays by name as NumPy's ``.npz``, whole or not at all; return the path.

    Raises:
      ValueError: an array is of Python objects.
    """
    import numpy as np  # here, so that launching jobs needs no NumPy

    save = np.savez_compressed if compressed else np.savez
    with replacing(path, durable=durable, alone=alone) as partial, partial.open("wb") as file:
        save(file, allow_pickle=False, **arrays)
    return Path(path)


def read_npz(path: str | Path) -> dict[str, Any]:
    """Read all arrays of a ``.npz`` file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is cut short or no such file; the message names it.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (AttributeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: is cut short or no .npz file ({error})") from error


def write_csv(
    path: str | Path,
    header: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    form: str = "",
    line_end: str = "\n",
    durable: bool = False,
    overwrite: bool = True,
) -> Path:
    """Write a table as CSV, whole or not at all; return the path.

    Args:
      path: of the file.
      header: names of the columns.
      rows: cells of each row.
      form: of floating-point cells, such as ``.6g``; shortest if empty.
      line_end: of each line.
      durable: as of ``replacing``.
      overwrite: as of ``replacing``.
    """
    with replacing(path, durable=durable, overwrite=overwrite) as partial:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator=line_end)
            writer.writerow(header)
            for row in rows:
                writer.writerow([_cell(cell, form) for cell in row])
    return Path(path)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a table with a header: one dictionary of texts a row, by column."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table as lines of Markdown, the header first; cells are written by ``str``."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def free_bytes(path: str | Path) -> int:
    """Count the bytes that are free on the disk of a path, which need not exist yet."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def full_disk(error: BaseException, folder: str | Path) -> str:
    """Say what the system leaves out of an error: which disk is full, and what to do.

    Args:
      error: what a write raised.
      folder: where it wrote.

    Returns:
      To be put behind the error's text; empty where the disk is not what failed.
    """
    if not isinstance(error, OSError) or error.errno not in WITHOUT_ROOM:
        return ""
    return (
        f" ({free_bytes(folder) / 1e6:.1f} MB free on the disk of {folder}). "
        "What is done is kept; the same command goes on when there is room"
    )


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """List what differs between two records that JSON can hold, as ``NAME was A and is B``.

    Names of nested records have dots, values are JSON text (not-a-number equals itself), and what
    one record lacks is ``absent`` in it.

    Args:
      before: the older record.
      now: the newer one.
      ignore: names that may differ; that of a nested record stands for all in it.
      defaults: what stands for names that ``before`` lacks.
    """
    old, new = _flat(defaults or {}) | _flat(before), _flat(now)
    return [
        f"{name} was {old.get(name, ABSENT)} and is {new.get(name, ABSENT)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and not any(f"{name}.".startswith(f"{ignored}.") for ignored in ignore)
    ]


def check_same(
    path: str | Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    what: str,
    advice: str = ADVICE,
    ignore: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to go on with what was begun as something else.

    Args:
      path: of the file or folder, for the message.
      before: what it was begun with.
      now: what is asked for.
      what: it was begun as, such as ``search``.
      advice: what to do about it: which flag to change.
      ignore: as for ``differences``.
      defaults: as for ``differences``.

    Raises:
      ValueError: the records differ; each difference is named with both values.
    """
    if differing := differences(before, now, ignore=ignore, defaults=defaults):
        raise ValueError(f"{path} comes from another {what}: {'; '.join(differing)}. {advice}")


def begin(
    path: str | Path,
    record: Mapping[str, Any],
    *,
    what: str,
    advice: str = ADVICE,
    indent: int = 1,
) -> None:
    """Write down what is begun, or check that it is what an earlier start began.

    Args:
      path: of the JSON file.
      record: what JSON can hold.
      what: as for ``check_same``.
      advice: as for ``check_same``.
      indent: of the JSON.

    Raises:
      ValueError: as of ``check_same``.
    """
    if Path(path).exists():
        check_same(path, read_json(path), record, what=what, advice=advice)
    else:
        write_json(path, record, indent=indent)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return seeds from text: ``0:8`` (0 to 7), ``0,3,5``, or both, ``0:4,10``; in the order given.

    Raises:
      ValueError: an entry is neither a number nor a range, a range is empty, a seed is negative or
        occurs twice, or there is none.
    """
    seeds: list[int] = []
    for entry in text.split(","):
        ends = entry.strip().split(":")
        if len(ends) > 2 or not all(end.strip().isdecimal() for end in ends):
            raise ValueError(
                f"seeds {text!r}: {entry.strip()!r} is neither a number from 0 up, such as 3, "
                "nor a range, such as 0:8"
            )
        first, stop = int(ends[0]), int(ends[1]) if len(ends) == 2 else int(ends[0]) + 1
        if stop <= first:
            raise ValueError(f"seeds {text!r}: the range {entry.strip()!r} is empty")
        seeds.extend(range(first, stop))
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seeds {text!r}: {twice} occur twice")
    return tuple(seeds)


def _cell(cell: Any, form: str) -> Any:
    # NumPy's float64 is a float; its others are told by name, so that NumPy is not needed.
    inexact = isinstance(cell, float) or type(cell).__name__ in ("float16", "float32")
    return format(cell, form) if form and inexact else cell


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> JSON text."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value)
    return found


def _partial(path: Path, alone: bool) -> Path:
    return path.with_name(f".{path.name}.{'partial' if alone else os.urandom(6).hex()}")


def _link(partial: Path, path: Path) -> None:
    """Give a file its name unless that is taken, which a rename would not mind."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise FileExistsError(f"{path} is there already; it is not written over") from None
    except OSError:  # a disk without links
        with path.open("xb") as file, partial.open("rb") as content:
            shutil.copyfileobj(content, file)
