"""A loss at many points of a line or a plane: one compiled program, spread over the devices.

A place of the program holds a *chunk*: one point, or several side by side (vmap), whichever a timed
probe on the real points finds faster. A device works its places off one after another and skips
those that are not in use, so one program serves any number of points and nothing is padded with
work. A value depends neither on the number of devices of one kind nor on the other points of the
call, except those of its chunk, and there to rounding.

Arrays that the loss closes over (the data) are handed to the program as arguments, so the compiler
does not have to process them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.landscape.compiled import (
    Signature,
    hoisted,
    remembered,
    shapes_of,
    signature_of,
    unjitted,
)
from densejax.landscape.directions import Line, Plane
from densejax.landscape.objective import LossFunction, measures_of
from densejax.population import Mapped, Population, memory_limit
from densejax.typing import Tree

Frame = Line | Plane
Values = dict[str, np.ndarray]

# Points that one call can carry on one device. A place that is not used costs a microsecond.
PLACES = 1024
# A call lasts about so long: what an interruption costs, and how often progress is told.
CALL_SECONDS = 1.0
CANDIDATES = (1, 4, 16, 64)
# A probe of a chunk size is worth its compilation and its lap only where the points take much
# longer, and a larger chunk only where it is clearly faster.
PROBE_SHARE = 0.05
PROBE_GAIN = 0.9
LAP_SECONDS = 0.05
MEMORY_SHARE = 0.8


class _Programs:
    """The compiled programs of one loss on frames of one shape, one for each chunk size tried.

    Everything that is asked is answered by one program, unless chunk sizes are probed.
    """

    def __init__(
        self, loss_fn: LossFunction, signature: Signature, devices: tuple[jax.Device, ...]
    ) -> None:
        self.devices = devices
        self.probed = 0
        # Points a second by chunk size, as the calls so far have it.
        self.rates: dict[int, float] = {}
        frame = shapes_of(signature)
        self.axes = 1 if isinstance(frame, Line) else 2
        self._coordinate_dtype = _coordinate_dtype(frame)
        point = jax.ShapeDtypeStruct((self.axes,), self._coordinate_dtype)
        measures = measures_of(unjitted(loss_fn))
        self.names: list[str] = []

        def at_point(frame: Frame, point: jax.Array) -> jax.Array:
            values = measures(frame.at(*(point[axis] for axis in range(self.axes))))
            self.names = sorted(values)
            return jnp.stack([_at_least_float32(values[name]) for name in self.names])

        # No TF32: a picture of a flat basin is made of small differences.
        with jax.default_matmul_precision("highest"):
            captured, self._run = hoisted(at_point, frame, point)
        self._result = jax.eval_shape(self._run, captured, frame, point)
        self._constants = self.place(captured)
        self._mapped: dict[int, Mapped] = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return sum(mapped.compilations for mapped in self._mapped.values())

    def compile_seconds(self, chunk: int) -> float:
        """What compiling the program of a chunk size took, tracing apart."""
        return self._mapped[chunk].compile_seconds if chunk in self._mapped else 0.0

    def peak_bytes(self, chunk: int) -> int:
        """The compiled program's own estimate of its memory on one device."""
        return self._mapped[chunk].peak_bytes()

    def place(self, tree: Tree) -> Tree:
        """A copy of the arrays on every device."""
        return self.population(1).replicate(tree)

    def prepare(self, frame: Tree, chunk: int) -> None:
        """Compile for a chunk size, if that has not been done."""
        if chunk not in self._mapped:
            mapped = self.population(chunk).map(self._at_place(chunk), shared=(2, 3), name="points")
            used, points = self._places(np.zeros((1, self.axes)), chunk)
            self._mapped[chunk] = mapped.compile(*self._arguments(frame, used, points))

    def __call__(self, frame: Tree, coordinates: np.ndarray, chunk: int) -> Values:
        """Name to [p] at [p, 1 or 2] points of a placed frame; p at most ``capacity(chunk)``."""
        self.prepare(frame, chunk)
        used, points = self._places(coordinates, chunk)
        placed = self._mapped[chunk](*self._arguments(frame, used, points))
        values = self.population(chunk).fetch(placed)[used].reshape(-1, len(self.names))
        return {name: values[: len(coordinates), i] for i, name in enumerate(self.names)}

    def capacity(self, chunk: int) -> int:
        """Points that one call can carry."""
        return self.population(chunk).slots * chunk

    def population(self, chunk: int) -> Population:
        """The places of all devices."""
        places = max(1, PLACES // chunk) * len(self.devices)
        return Population(places, devices=self.devices)

    def _places(self, coordinates: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Which places are used, [places] bool, as many on each device; and their points."""
        devices, places = len(self.devices), self.population(chunk).slots
        chunks = -(-len(coordinates) // chunk)
        each = -(-chunks // devices)
        starts = np.arange(devices)[:, None] * each + np.arange(places // devices)
        used = (np.arange(places // devices) < each) & (starts < chunks)
        points = np.zeros((places, chunk, self.axes), self._coordinate_dtype)
        spare = chunks * chunk - len(coordinates)
        rows = np.concatenate([coordinates, np.repeat(coordinates[-1:], spare, axis=0)])
        points[used.ravel()] = rows.reshape(chunks, chunk, self.axes)
        return used.ravel(), points

    def _arguments(self, frame: Tree, used: np.ndarray, points: np.ndarray) -> tuple[Any, ...]:
        population = self.population(points.shape[1])
        return population.place(used), population.place(points), frame, self._constants

    def _at_place(self, chunk: int) -> Callable[..., jax.Array]:
        """The values of one place, [chunk, measures], as the population maps it."""

        def at_place(
            used: jax.Array, points: jax.Array, frame: Frame, constants: list[jax.Array]
        ) -> jax.Array:
            def one(point: jax.Array) -> jax.Array:
                return self._run(constants, frame, point)

            def evaluated() -> jax.Array:
                return jax.vmap(one)(points) if chunk > 1 else one(points[0])[None]

            def skipped() -> jax.Array:
                return jnp.full((chunk, *self._result.shape), jnp.nan, self._result.dtype)

            return jax.lax.cond(used, evaluated, skipped)

        return at_place


class Evaluator:
    """A loss on one frame: compiles at the first call, probes, and runs over many points."""

    def __init__(
        self,
        loss_fn: LossFunction,
        frame: Frame,
        *,
        chunk: int = 0,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Trace the loss on the frame.

        Args:
          loss_fn: parameters to a scalar, or to ``{name: scalar}`` with ``loss`` in it. It is
            compiled once for all frames of the same shapes, as ``jax.jit`` would: what it closes
            over must not change.
          frame: the line or plane.
          chunk: points side by side; 0 is found by a probe, where the points take long enough.
          devices: devices to use, all local ones by default.

        Raises:
          ValueError: the loss is not scalar, ``chunk`` is negative, or the frame is none.
        """
        if chunk < 0:
            raise ValueError(f"chunk is {chunk}: expected a number of points, or 0 for a probe")
        if not isinstance(frame, Line | Plane):
            raise ValueError(f"expected a Line or a Plane, found {type(frame).__name__}")
        used = tuple(devices if devices is not None else jax.local_devices())
        self.programs = _programs(loss_fn, signature_of(frame), used)
        self.chunk = chunk or self.programs.probed or 1
        self._probe = not (chunk or self.programs.probed)
        self._frame = self.programs.place(frame)
        # Whether the last call was long enough for a rate.
        self._sure = False

    @property
    def _rate(self) -> float:
        return self.programs.rates.get(self.chunk, 0.0)

    def __call__(self, coordinates: np.ndarray) -> Values:
        """The values at [p, 1 or 2] coordinates, name to [p]."""
        parts = [values for _, values in self.parts(coordinates)]
        return {
            name: np.concatenate([part[name] for part in parts]) for name in self.programs.names
        }

    def now(self, coordinates: np.ndarray) -> Values:
        """The values at few points in one call; what it took is an estimate of the rate."""
        self.programs.prepare(self._frame, self.chunk)
        start = time.perf_counter()
        values = self.programs(self._frame, coordinates, self.chunk)
        self._note(len(coordinates), time.perf_counter() - start)
        return values

    def estimate(self, coordinates: np.ndarray) -> float:
        """Seconds that [p, 1 or 2] points will take; too much rather than too little.

        From the calls so far, or of a few of the points where those were too short to tell.
        """
        few = len(self.programs.devices) * self.chunk
        for count in (few, 16 * few):
            known = len(coordinates) / self._rate if self._rate else np.inf
            if known > CALL_SECONDS and not self._sure:
                self.now(coordinates[: min(count, self.programs.capacity(self.chunk))])
        return len(coordinates) / self._rate

    def probe(self, coordinates: np.ndarray) -> None:
        """Find the fastest chunk, where [p, 1 or 2] points take long enough to repay it."""
        if not self._probe or len(coordinates) < CANDIDATES[1] * len(self.programs.devices):
            return
        self._probe = False
        # The estimate is too high where few points were timed, so this is cheap to get wrong.
        if PROBE_SHARE * self.estimate(coordinates) > self._compile_seconds():
            self.programs.probed = self.chunk = self._fastest(coordinates)

    def _compile_seconds(self) -> float:
        self.programs.prepare(self._frame, self.chunk)
        return self.programs.compile_seconds(self.chunk)

    def _fastest(self, coordinates: np.ndarray) -> int:
        """The best of the chunks whose laps the points repay; larger ones while they gain."""
        devices, compiling = len(self.programs.devices), self._compile_seconds()
        best, chosen = self._lap(coordinates, self.chunk), self.chunk
        budget = PROBE_SHARE * best * len(coordinates)
        for chunk in CANDIDATES:
            points = chunk * devices
            if chunk <= chosen or points > len(coordinates):
                continue
            start = time.perf_counter()
            if compiling + 2 * best * points > budget or not self._fits(chunk):
                break
            each = self._lap(coordinates, chunk)
            budget -= time.perf_counter() - start
            if each > PROBE_GAIN * best:
                break
            best, chosen = each, chunk
        self.programs.rates[chosen] = 1 / best
        return chosen

    def parts(
        self, coordinates: np.ndarray, *, stops: Sequence[int] = ()
    ) -> Iterator[tuple[slice, Values]]:
        """Rows and name to values as they are computed, in calls of about a second.

        Of whole chunks; ``stops`` are numbers of points at which a call shall end.
        """
        coordinates = np.asarray(coordinates, np.float64).reshape(-1, self.programs.axes)
        done, total = 0, len(coordinates)
        while done < total:
            stop = min([s for s in stops if s > done] + [total])
            if not self._rate:
                wanted = len(self.programs.devices) * self.chunk
            else:
                wanted = int(CALL_SECONDS * self._rate)
            wanted = max(1, wanted // self.chunk) * self.chunk
            end = min(done + min(wanted, self.programs.capacity(self.chunk)), stop)
            # Chunks are of the same points, whenever calls begin and end.
            end = min(done + -(-(end - done) // self.chunk) * self.chunk, total)
            yield slice(done, end), self.now(coordinates[done:end])
            done = end

    def _note(self, points: int, seconds: float) -> None:
        """A call that carried more work tells more of the rate."""
        rate = points / max(seconds, 1e-9)
        self._sure = seconds > LAP_SECONDS
        self.programs.rates[self.chunk] = rate if self._sure else max(rate, self._rate)

    def _fits(self, chunk: int) -> bool:
        """Whether a chunk size leaves room on the devices."""
        self.programs.prepare(self._frame, chunk)
        limit = memory_limit(self.programs.devices)
        return self.programs.peak_bytes(chunk) < MEMORY_SHARE * limit

    def _lap(self, coordinates: np.ndarray, chunk: int) -> float:
        """Seconds a point with a chunk size, of enough points that the call is no matter."""
        count = chunk * len(self.programs.devices)
        most = min(len(coordinates), self.programs.capacity(chunk))
        while True:
            some = coordinates[: min(count, most)]
            laps = []
            for _ in range(2):
                start = time.perf_counter()
                self.programs(self._frame, some, chunk)
                laps.append(time.perf_counter() - start)
            if min(laps) > LAP_SECONDS or len(some) == most:
                return min(laps) / len(some)
            count *= 4


@remembered
def _programs(
    loss_fn: LossFunction, signature: Signature, devices: tuple[jax.Device, ...]
) -> _Programs:
    return _Programs(loss_fn, signature, devices)


def _coordinate_dtype(frame: Frame) -> Any:
    """float32, or float64 where a parameter is."""
    leaves = [leaf.dtype for leaf in jax.tree.leaves(frame.centre)]
    floating = [dtype for dtype in leaves if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.promote_types(jnp.float32, jnp.result_type(*floating)) if floating else jnp.float32


def _at_least_float32(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.float32))
