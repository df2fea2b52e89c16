"""Who knows the labels: a table that is known already, or a person with a file."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from densejax.io import write_csv
from densejax.typing import Array


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
