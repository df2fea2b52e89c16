"""The loss on lines and planes: grids refined from coarse to fine, kept on disk, and resumed."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.landscape.directions import Line, Plane
from densejax.landscape.objective import LossFunction
from densejax.landscape.progress import Progress
from densejax.landscape.surfaces import files
from densejax.landscape.surfaces.points import Evaluator, Frame

Span = float | tuple[tuple[float, float], tuple[float, float]]

# The file is behind the computation by no more.
SAVE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Surface:
    """Measures on a grid: ``values["loss"][i, j]`` is the loss at (x[i], y[j]).

    Attributes:
      x: [p] float64, along the plane's first direction.
      y: [q] float64, along the second.
      values: name to [p, q] ([k, p, q] of several planes), floating; not-a-number where it has not
        been computed yet, or where the measure is that.
    """

    x: np.ndarray
    y: np.ndarray
    values: dict[str, np.ndarray]


def evaluate(
    loss_fn: LossFunction,
    frame: Frame,
    coordinates: np.ndarray,
    *,
    chunk: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, np.ndarray]:
    """The loss at points of a line or a plane.

    Args:
      loss_fn: parameters to a scalar, or to ``{name: scalar}`` with ``loss`` in it; compiled once
        for all frames of the same shapes.
      frame: the line or plane.
      coordinates: [p] or [p, 1] of a line, [p, 2] of a plane.
      chunk: points side by side on a device; 0 is found by a probe, where that repays.
      devices: devices to use, all local ones by default.

    Returns:
      Name to [p], floating.

    Raises:
      ValueError: the loss is not scalar, or the coordinates do not fit the frame.
    """
    coordinates = np.asarray(coordinates, np.float64)
    axes = 1 if isinstance(frame, Line) else 2
    if axes == 1 and coordinates.ndim == 1:
        coordinates = coordinates[:, None]
    if coordinates.ndim != 2 or coordinates.shape[1] != axes or not len(coordinates):
        raise ValueError(
            f"coordinates {list(coordinates.shape)}: expected [p, {axes}] with p at least 1"
        )
    evaluator = Evaluator(loss_fn, frame, chunk=chunk, devices=devices)
    evaluator.probe(coordinates)
    return evaluator(coordinates)


def line_profile(
    loss_fn: LossFunction,
    line: Line,
    *,
    points: int = 101,
    span: tuple[float, float] = (-1.0, 1.0),
    chunk: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The loss along a line.

    Args:
      loss_fn: as in ``evaluate``.
      line: where.
      points: how many, at equal distances, ends included; at least 2.
      span: first and last t.
      chunk: as in ``evaluate``.
      devices: as in ``evaluate``.

    Returns:
      t [p] float64, and name to [p].

    Raises:
      ValueError: the loss is not scalar, or fewer than 2 points or no span.
    """
    t = _axis(points, span, "t")
    return t, evaluate(loss_fn, line, t, chunk=chunk, devices=devices)


def surface(
    loss_fn: LossFunction,
    plane: Plane,
    *,
    points: int | tuple[int, int] = 51,
    span: Span = 1.0,
    file: Path | None = None,
    on_level: Callable[[Surface], None] | None = None,
    chunk: int = 0,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> Surface:
    """The loss on a grid of a plane, from coarse to fine.

    Levels are subsets of the grid, each with the points of the one before: 3 x 3, 5 x 5, 9 x 9 and
    so on to all. Interrupted (Ctrl-C) or killed, a grid with a ``file`` goes on where it was when
    the same call is made again, with the same result.

    Args:
      loss_fn: as in ``evaluate``. It is compiled once for all planes of the same shapes.
      plane: where.
      points: of the grid, along x and y; each at least 2.
      span: half the length of both axes about the centre, or ((x0, x1), (y0, y1)).
      file: ``.npz`` to keep the grid in, replaced by rename every few seconds.
      on_level: called with the grid after each level, not-a-number where nothing is known yet.
      chunk: as in ``evaluate``. Bits depend on it; a grid that is resumed keeps its own.
      devices: as in ``evaluate``. Bits do not depend on their number.
      progress: tell the cost before, and points per second and time left during the computation.

    Returns:
      The grid.

    Raises:
      ValueError: the loss is not scalar, or not finite at the plane's centre; no grid; or the file
        holds another network's, plane's, loss' or grid's values (the difference is named).
    """
    counts = (points, points) if isinstance(points, int) else tuple(points)
    spans = ((-span, span), (-span, span)) if isinstance(span, int | float) else span
    x = _axis(counts[0], spans[0], "x")
    y = _axis(counts[1], spans[1], "y")
    kept = files.open_grid(file, plane, x, y) if file is not None else None
    chunk = chunk if kept is None else kept.chunk
    evaluator = Evaluator(loss_fn, plane, chunk=chunk, devices=devices)
    grid = _Grid(x, y, evaluator, kept, None if file is None else Path(file), plane)
    grid.check()
    grid.run(on_level, progress=progress)
    return grid.surface()


class _Grid:
    """A grid while it is computed: what is done, and where it is kept."""

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        evaluator: Evaluator,
        kept: files.Kept | None,
        file: Path | None,
        plane: Plane,
    ) -> None:
        self._x, self._y, self._evaluator, self._file = x, y, evaluator, file
        self._about = files.about(plane) if file is not None else {}
        parts = levels(len(x), len(y))
        # Places in the order in which they are computed.
        self._order = np.concatenate(parts)
        self._stops = np.cumsum([len(part) for part in parts]).tolist()
        self._coordinates = np.stack([x[self._order[:, 0]], y[self._order[:, 1]]], axis=1)
        self._kept = kept
        self._done = 0
        self._values: dict[str, np.ndarray] = {}
        self._saved = time.monotonic()

    def surface(self) -> Surface:
        """What is known, as a copy."""
        return Surface(self._x, self._y, {n: v.copy() for n, v in self._values.items()})

    def check(self) -> None:
        """Compile; the loss must be finite at the centre, and as the file has it."""
        corner = self._coordinates[:1]
        found = self._evaluator.now(np.concatenate([np.zeros((1, 2)), corner]))
        _check_finite({name: float(value[0]) for name, value in found.items()})
        shape = (len(self._x), len(self._y))
        self._values = {name: np.full(shape, np.nan, value.dtype) for name, value in found.items()}
        if self._kept is None:
            return
        assert self._file is not None
        self._kept.check_values(self._file, found, tuple(self._order[0]))
        for name, value in self._kept.values.items():
            self._values[name][...] = value
        done = self._kept.done[self._order[:, 0], self._order[:, 1]]
        self._done = len(done) if done.all() else int(np.argmin(done))

    def run(self, on_level: Callable[[Surface], None] | None, *, progress: bool) -> None:
        """Compute what is left."""
        left = self._coordinates[self._done :]
        if not len(left):
            if on_level is not None:
                on_level(self.surface())
            return
        evaluator = self._evaluator
        evaluator.probe(left)
        names, devices = ", ".join(self._values), len(evaluator.programs.devices)
        told = Progress(len(left), "point", shown=progress)
        told.say(
            f"{len(self._x)} x {len(self._y)} points of {names}"
            + (f", {self._done} of them on file" if self._done else "")
            + f"; on {devices} {'devices' if devices > 1 else 'device'}, "
            f"{evaluator.chunk} at a time: at most about {told.clock(evaluator.estimate(left))}"
        )
        stops = [stop - self._done for stop in self._stops] if on_level is not None else []
        first = self._done
        try:
            for rows, values in evaluator.parts(left, stops=stops):
                self._fill(first + rows.start, first + rows.stop, values)
                told.update(rows.stop - rows.start)
                if on_level is not None and any(rows.start < stop <= rows.stop for stop in stops):
                    on_level(self.surface())
        finally:
            self._save()
            told.close()

    def _fill(self, start: int, stop: int, values: dict[str, np.ndarray]) -> None:
        rows, columns = self._order[start:stop].T
        for name, value in values.items():
            self._values[name][rows, columns] = value
        self._done = stop
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        if self._file is None:
            return
        done = np.zeros((len(self._x), len(self._y)), bool)
        done[tuple(self._order[: self._done].T)] = True
        kept = files.Kept(self._x, self._y, self._values, done, self._evaluator.chunk, self._about)
        files.write(self._file, kept)
        self._saved = time.monotonic()


def read_surface(file: Path) -> Surface:
    """The grid of a file as far as it has been computed, without a loss.

    Args:
      file: what ``surface`` wrote.

    Raises:
      ValueError: it is not such a file.
    """
    kept = files.read(Path(file))
    return Surface(kept.x, kept.y, kept.values)


def seeds_surface(
    loss_fn: LossFunction,
    planes: Plane | Sequence[Plane],
    *,
    points: int | tuple[int, int] = 51,
    span: Span = 1.0,
    chunk: int = 0,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> Surface:
    """The loss on a grid of each of several planes, by one program.

    Several seeds along the same directions are planes that differ in their centres alone; several
    planes of one network show how much a picture hangs on its random directions.

    Args:
      loss_fn: as in ``evaluate``.
      planes: a sequence of planes of the same shapes, or one with a leading axis [k, ...] on every
        leaf.
      points: as in ``surface``.
      span: as in ``surface``.
      chunk: as in ``evaluate``.
      devices: as in ``evaluate``.
      progress: as in ``surface``.

    Returns:
      The grids: ``values`` are [k, p, q].

    Raises:
      ValueError: as ``surface``, or there is no plane.
    """
    each = _unstacked(planes) if isinstance(planes, Plane) else list(planes)
    if not each:
        raise ValueError("no planes: expected at least one")
    options: Any = {"points": points, "span": span, "chunk": chunk, "devices": devices}
    surfaces = [surface(loss_fn, plane, progress=progress, **options) for plane in each]
    names = surfaces[0].values
    values = {name: np.stack([one.values[name] for one in surfaces]) for name in names}
    return Surface(surfaces[0].x, surfaces[0].y, values)


def axis_levels(points: int) -> list[np.ndarray]:
    """Nested places on one axis: the ends and the middle, then the middles of what lies between.

    Sorted int64, each array with the places of the one before, the last with all.
    """
    places = np.unique([0, (points - 1) // 2, points - 1])
    found = [places]
    while len(places) < points:
        middles = (places[:-1] + places[1:]) // 2
        places = np.unique(np.concatenate([places, middles]))
        found.append(places)
    return found


def levels(rows: int, columns: int) -> list[np.ndarray]:
    """What each level of a grid adds to the one before: [n, 2] int64 places (row, column).

    Row by row; together every place once. The axis with fewer levels is complete in the last ones.
    """
    across, down = axis_levels(rows), axis_levels(columns)
    count = max(len(across), len(down))
    known = np.zeros((rows, columns), bool)
    parts = []
    for level in range(count):
        wanted = np.zeros((rows, columns), bool)
        wanted[np.ix_(across[min(level, len(across) - 1)], down[min(level, len(down) - 1)])] = True
        parts.append(np.argwhere(wanted & ~known))
        known |= wanted
    return parts


def _unstacked(planes: Plane) -> list[Plane]:
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(planes)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(f"stacked planes: expected one leading length, found {sorted(counts)}")
    (count,) = counts.pop()
    return [jax.tree.map(lambda leaf, i=i: leaf[i], planes) for i in range(count)]


def _axis(points: int, span: tuple[float, float], name: str) -> np.ndarray:
    first, last = span
    if points < 2:
        raise ValueError(f"{points} points along {name}: expected at least 2")
    if not (np.isfinite(first) and np.isfinite(last) and first < last):
        raise ValueError(f"span of {name} from {first} to {last}: expected an increasing one")
    return np.linspace(first, last, points)


def _check_finite(values: dict[str, float]) -> None:
    if not np.isfinite(values["loss"]):
        raise ValueError(f"the loss at the centre is {values['loss']}: expected a finite number")
