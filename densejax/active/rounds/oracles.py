"""Who knows the labels: a table that is known already, or a person with a file or a folder."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from densejax.data.units import Units
from densejax.io import read_csv, replacing, write_csv, write_text
from densejax.typing import UNLABELLED, Array

# What a person's mask says where nothing is to be learnt.
VOID = 255


class LabelsNeededError(ValueError):
    """The run cannot go on before a person has written labels; the message names the files."""


class Oracle(Protocol):
    """Answers with the labels of samples."""

    def reveal(
        self, indices: np.ndarray, *, folder: Path, predicted: np.ndarray | None = None
    ) -> np.ndarray:
        """Labels [q] int32 of the samples ``indices`` [q], ascending, each once.

        Args:
          indices: rows of the pool.
          folder: of the round that asks, for whatever the oracle writes.
          predicted: [q] int, what a network takes them for; -1 where none has seen them.
        """
        ...


class KnownLabels:
    """Every label is known, as in an experiment on a labelled set."""

    def __init__(self, labels: Array, *, classes: int) -> None:
        """Keep the labels.

        Args:
          labels: [n] int32.
          classes: c.

        Raises:
          ValueError: a label is outside -1..c-1.
        """
        self.labels = np.asarray(labels, np.int32)
        _check_classes(np.arange(len(self.labels)), self.labels, classes, "labels", least=-1)

    def reveal(
        self, indices: np.ndarray, *, folder: Path, predicted: np.ndarray | None = None
    ) -> np.ndarray:
        """Labels of the samples.

        Raises:
          ValueError: a sample's label is -1, unknown.
        """
        del folder, predicted
        labels = self.labels[indices]
        missing = np.asarray(indices)[labels < 0]
        if missing.size:
            raise ValueError(
                f"{missing.size} of the samples asked for have no label, the first is {missing[0]}"
            )
        return labels


class LabelFile:
    """A person is the oracle: each round writes a query and waits for a file with its labels.

    ``query.csv`` has the header ``index,predicted,file``: each sample once, whichever strategies
    and seeds ask for it; ``predicted`` is the name of the class that a network takes it for and
    ``file`` that of the picture, both empty where unknown. The answer, ``labels.csv`` beside it,
    has the header ``index,label``, the number or the name of a class; the order does not matter.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        files: Sequence[str] = (),
        query_csv: str = "query.csv",
        labels_csv: str = "labels.csv",
    ) -> None:
        """Name the classes and the files.

        Args:
          class_names: c names.
          files: n names of pictures; none where empty.
          query_csv: name of the query in the round's folder.
          labels_csv: name of the answer in the same folder.
        """
        self._names, self._files = tuple(class_names), files
        self._query, self._labels = query_csv, labels_csv

    def reveal(
        self, indices: np.ndarray, *, folder: Path, predicted: np.ndarray | None = None
    ) -> np.ndarray:
        """Write the query and read the answer.

        Raises:
          LabelsNeededError: there is no answer yet.
          ValueError: the answer has unknown ids, one id twice, or none for a sample, or a label
            outside the classes, or it cannot be read; the message names the file and the line.
        """
        query, answer = folder / self._query, folder / self._labels
        self._write(query, indices, predicted)
        if not answer.exists():
            raise LabelsNeededError(
                f"{len(indices)} samples want a label: {query}. Write {answer} with the header "
                f"index,label (classes 0 to {len(self._names) - 1} or their names), then start "
                "the same command again."
            )
        return self._read(answer, np.asarray(indices))

    def _write(self, path: Path, indices: np.ndarray, predicted: np.ndarray | None) -> None:
        guesses = np.full(len(indices), -1) if predicted is None else predicted
        names = [self._names[guess] if guess >= 0 else "" for guess in guesses]
        files = [self._files[index] if self._files else "" for index in indices]
        rows = zip(map(int, indices), names, files, strict=True)
        write_csv(path, ("index", "predicted", "file"), rows)

    def _read(self, path: Path, indices: np.ndarray) -> np.ndarray:
        asked = {int(index): place for place, index in enumerate(indices)}
        labels = np.full(len(indices), -1, np.int64)
        lines = np.zeros(len(indices), np.int64)
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            names = [(name or "").strip() for name in rows.fieldnames or ()]
            rows.fieldnames = names
            if not {"index", "label"} <= set(names):
                raise ValueError(f"{path}: found the header {names}; expected index,label")
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                place = asked.get(_whole(row["index"], where))
                if place is None:
                    raise ValueError(
                        f"{where}: index {row['index']} is none of the {len(indices)} samples "
                        "that were asked for"
                    )
                if lines[place]:
                    raise ValueError(
                        f"{where}: index {row['index']} occurs twice, first in line {lines[place]}"
                    )
                lines[place] = rows.line_num
                labels[place] = self._class(row["label"], where)
        missing = indices[lines == 0]
        if missing.size:
            raise ValueError(
                f"{path}: no label for {missing.size} of {len(indices)} samples, the first is "
                f"index {missing[0]}"
            )
        return labels.astype(np.int32)

    def _class(self, text: str | None, where: str) -> int:
        text = (text or "").strip()
        if text in self._names:
            return self._names.index(text)
        if text.lstrip("-").isdecimal() and 0 <= int(text) < len(self._names):
            return int(text)
        raise ValueError(
            f"{where}: label {text!r} is outside the classes; expected 0 to "
            f"{len(self._names) - 1} or one of {', '.join(self._names[:5])}"
        )


class LabelFolder:
    """A person is the oracle of masks: each round writes a folder and waits for its masks.

    A round's folder has ``query.csv`` with the header ``index,name,image,mask``, each unit once;
    ``pictures/NAME.png``; ``predicted/NAME.png``, class numbers, where a network has seen the unit;
    and ``README.txt``. The answers are ``masks/NAME.png``: one channel of 8 bits (mode L), class
    numbers, 255 where void. What was answered in an earlier round is not asked again.

    Attributes:
      predict: what a network takes a unit for, [z, y, x], or None where none has seen it; may be
        set after the subject is made.
    """

    def __init__(
        self,
        units: Units,
        workdir: str | Path,
        predict: Callable[[int], np.ndarray | None] | None = None,
    ) -> None:
        """Name the units and the run.

        Args:
          units: n units; their labels are not looked at.
          workdir: of the run, whose rounds are in ``rounds/NN``.
          predict: of a row of the units, as the attribute.

        Raises:
          ValueError: units cannot be said as PNG: more sections than one, channels other than 1
            or 3, more than 255 classes, or a name that is no name of a file, or occurs twice.
        """
        sections, channels = units.images.shape[1], units.images.shape[-1]
        if sections != 1 or channels not in (1, 3) or len(units.class_names) > VOID:
            raise ValueError(
                f"units of {sections} sections, {channels} channels and {len(units.class_names)} "
                f"classes; a folder of PNG takes 1 section, 1 or 3 channels and {VOID} classes"
            )
        for name in units.names:
            if not name or name != Path(name).name:
                raise ValueError(f"unit {name!r}: expected a name without folders")
        # Folders of some systems tell no A from a.
        if len({name.casefold() for name in units.names}) < len(units.names):
            raise ValueError("units: names occur twice; each is the name of a file")
        self._units, self._workdir, self.predict = units, Path(workdir), predict

    def reveal(
        self, indices: np.ndarray, *, folder: Path, predicted: np.ndarray | None = None
    ) -> np.ndarray:
        """Write the query and check the masks; zeros [q] int32, "labelled".

        Raises:
          LabelsNeededError: masks are missing; how many and the first.
          ValueError: a mask is of no unit that was asked for, cannot be read, or has another size,
            mode or codes, or is void everywhere; the message names the file.
        """
        del predicted
        rows, folder = np.asarray(indices), Path(folder)
        earlier = [f for f in self._folders() if _round_order(f) < _round_order(folder)]
        asked = [row for row in map(int, rows) if self._find(row, earlier) is None]
        self._write(folder, asked)
        wanted = {self._path(folder, row): row for row in asked}
        there = sorted((folder / "masks").glob("*.png"))
        if odd := [path for path in there if path not in wanted]:
            raise ValueError(f"{odd[0]}: no unit of this name was asked for; see query.csv")
        for path in there:
            self._read(path)
        if missing := [path for path in wanted if path not in there]:
            raise LabelsNeededError(
                f"{len(missing)} of {len(asked)} masks are missing, the first is {missing[0]}. "
                f"{folder / 'README.txt'} says how they are written; then start the same command "
                "again."
            )
        return np.zeros(len(rows), np.int32)

    def mask(self, index: int) -> np.ndarray:
        """The mask of a unit, int8 [z, y, x], -1 where void, from whichever round has it.

        Raises:
          LabelsNeededError: no round has it.
          ValueError: as of ``reveal``.
        """
        path = self._find(index, self._folders())
        if path is None:
            raise LabelsNeededError(
                f"{self._workdir / 'rounds'}: no round has masks/{self._units.names[index]}.png"
            )
        return self._read(path)[None]

    def _folders(self) -> list[Path]:
        """Folders of the run's rounds, the first round first."""
        return sorted((self._workdir / "rounds").glob("*/"), key=_round_order)

    def _path(self, folder: Path, row: int) -> Path:
        return folder / "masks" / f"{self._units.names[row]}.png"

    def _find(self, row: int, folders: Sequence[Path]) -> Path | None:
        return next((p for f in folders if (p := self._path(f, row)).is_file()), None)

    def _write(self, folder: Path, rows: Sequence[int]) -> None:
        names = [self._units.names[row] for row in rows]
        table = [
            (str(row), name, f"pictures/{name}.png", f"masks/{name}.png")
            for row, name in zip(rows, names, strict=True)
        ]
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        query = folder / "query.csv"
        # The query is written last: where it is there, all of the folder is.
        if query.exists() and [tuple(line.values()) for line in read_csv(query)] == table:
            return
        for row, name in zip(rows, names, strict=True):
            image = self._units.images[row, 0]
            grey = image.shape[-1] == 1
            _write_png(folder / f"pictures/{name}.png", image[..., 0] if grey else image)
            guess = None if self.predict is None else self.predict(row)
            if guess is not None:
                codes = np.asarray(guess).reshape(image.shape[:2])
                codes = np.where(codes < 0, VOID, codes).astype(np.uint8)
                _write_png(folder / f"predicted/{name}.png", codes)
        write_text(folder / "README.txt", self._advice(len(rows)))
        write_csv(query, ("index", "name", "image", "mask"), table)

    def _advice(self, number: int) -> str:
        y, x = self._units.images.shape[2:4]
        classes = "\n".join(f"  {c:3d}  {name}" for c, name in enumerate(self._units.class_names))
        return (
            f"{number} pictures want a mask. For every pictures/NAME.png that query.csv lists,\n"
            f"write masks/NAME.png: a PNG of {x} x {y} pixels, one channel of 8 bits (mode L, no\n"
            f"palette), whose values are numbers of classes:\n\n{classes}\n"
            f"  {VOID}  void: not known, is not learnt from\n\n"
            "Where there is predicted/NAME.png, it is what a network takes the picture for, in\n"
            "the same numbers (it looks black): a copy of it to mend is often quicker.\n"
            "When all masks are there, start the same command again.\n"
        )

    def _read(self, path: Path) -> np.ndarray:
        """int8 or int32 [y, x] of a mask that is as it should be."""
        classes, shape = len(self._units.class_names), self._units.images.shape[2:4]
        try:
            with Image.open(path) as opened:
                mode, codes = opened.mode, np.asarray(opened)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path}: cannot be read as a picture ({error})") from error
        if mode != "L":
            raise ValueError(
                f"{path}: a mask of mode {mode}; expected one channel of 8 bits (mode L), no "
                "palette and no colours"
            )
        if codes.shape != shape:
            raise ValueError(
                f"{path}: {codes.shape[1]} x {codes.shape[0]} pixels; expected {shape[1]} x "
                f"{shape[0]} (x, y), as the picture"
            )
        outside = codes[(codes >= classes) & (codes != VOID)]
        if outside.size:
            raise ValueError(
                f"{path}: {outside.size} pixels are outside the classes, the first is "
                f"{outside[0]}; expected 0 to {classes - 1}, or {VOID} for void"
            )
        if (codes == VOID).all():
            raise ValueError(f"{path}: every pixel is void ({VOID}); expected some with a class")
        kind = np.int8 if classes <= 128 else np.int32
        return np.where(codes == VOID, UNLABELLED, codes.astype(np.int32)).astype(kind)


def _round_order(folder: Path) -> tuple[int, str]:
    return len(folder.name), folder.name


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with replacing(path) as partial:
        Image.fromarray(np.ascontiguousarray(pixels)).save(partial, format="PNG")


def _whole(text: str | None, where: str) -> int:
    text = (text or "").strip()
    if not text.isdecimal():
        raise ValueError(f"{where}: index {text!r}; expected a whole number from 0")
    return int(text)


def _check_classes(
    indices: np.ndarray, labels: np.ndarray, classes: int, name: str, *, least: int
) -> None:
    outside = np.flatnonzero((labels < least) | (labels >= classes))
    if outside.size:
        raise ValueError(
            f"{name}: label {labels[outside[0]]} of sample {indices[outside[0]]} is outside the "
            f"{classes} classes"
        )
