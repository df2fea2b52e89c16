"""Many rays from many minima in one compiled program: lanes, chunks, devices, progress.

A *search* is a pure function of some lanes, each of which is one ray; what it returns is collected
for every ray. Lanes stand side by side in chunks (``vmap``); chunks run one after another, shared
out over minima and devices by ``instances.Population``. Directions number j * c to (j + 1) * c - 1
are chunk j on any number of devices, so with one chunk size the bits do not depend on the devices;
another chunk size agrees to rounding. A direction is drawn from its key when its chunk begins, and
gone when it ends.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from densejax.landscape.basins.spheres import Draw
from densejax.landscape.compiled import (
    Signature,
    hoisted,
    remembered,
    shapes_of,
    signature_of,
    unjitted,
)
from densejax.landscape.directions import Line
from densejax.landscape.objective import LossFunction, loss_of
from densejax.landscape.progress import Progress
from densejax.population import Mapped, Population, memory_limit
from densejax.typing import Params, Tree

# Distances [c] to losses [c]; what belongs to the minimum; which lanes are live [c]; operand.
Search = Callable[[Callable[[jax.Array], jax.Array], Tree, jax.Array, Tree], Tree]

# Chunk sizes that the probe tries, in turn, until one is no faster by a tenth.
CHUNKS = (1, 4, 16, 64, 256, 1024)
GAIN = 0.9
# A loss that takes so long alone fills its device: the probe tries no second one beside it.
ALONE_SECONDS = 0.05
# Losses along one direction that a trial takes: about as many as a search does.
REPEATS = 20
# The host hears from the devices about this often.
WAVE_SECONDS = 1.0


def centre_losses(
    loss_fn: LossFunction,
    minima: Params,
    settings: Tree,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> np.ndarray:
    """The loss of every minimum, [k] float32, of stacked parameters (and settings) [k, ...].

    Raises:
      ValueError: the loss is no scalar, or the minima are not stacked alike.
    """
    program, constants = _centres(loss_fn, *_signatures(minima, settings), _places(devices))
    population = program.population
    found = program(constants, population.place(minima), population.place(settings))
    return population.fetch(found)


def run(
    search: Search,
    draw: Draw,
    loss_fn: LossFunction,
    minima: Params,
    *,
    own: Tree,
    operand: Tree,
    directions: int,
    first: int = 0,
    settings: Tree = None,
    chunk: int = 0,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> Tree:
    """Search along rays: tree of NumPy arrays [k, directions, ...], of what ``search`` returns.

    Programs of the last few losses are kept, so the same search is not compiled again for other
    minima of the same shapes; what a loss closes over must not change.

    Args:
      search: a function of a module, not a closure (programs are remembered by it).
      draw: where directions come from; has a hash.
      loss_fn: of parameters, or of parameters and settings where these are given.
      minima: stacked parameters [k, ...].
      own: tree of arrays [k, ...], what ``search`` needs to know of every minimum.
      operand: tree of arrays for ``draw`` and ``search``.
      directions: number of rays a minimum.
      first: number of the first direction.
      settings: stacked [k, ...], or None.
      chunk: lanes side by side; 0 times a few sizes and takes the fastest.
      devices: all local ones where None.
      progress: tell directions/s and the time left.

    Raises:
      ValueError: ``directions`` is below 1, ``first`` or ``chunk`` below 0, or arrays do not match.
    """
    if directions < 1 or first < 0 or chunk < 0:
        raise ValueError(
            f"directions={directions}, first={first}, chunk={chunk}: expected at least one "
            "direction, and no negative number"
        )
    program = _program(
        (search, draw, loss_fn),
        *_signatures(minima, settings),
        signature_of((own, operand)),
        (directions, chunk),
        _places(devices),
    )
    return program((minima, settings, own), operand, first, progress=progress)


def _places(devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
    return tuple(devices if devices is not None else jax.local_devices())


def _signatures(minima: Params, settings: Tree) -> tuple[Signature, Signature | None]:
    return signature_of(minima), None if settings is None else signature_of(settings)


@remembered
def _centres(
    loss_fn: LossFunction,
    minima: Signature,
    settings: Signature | None,
    devices: tuple[jax.Device, ...],
) -> tuple[Mapped, Tree]:
    """The program of ``centre_losses`` and its constants."""
    constants, loss = _traced(loss_fn, minima, settings)
    population = Population(minima[1][0][0][0], devices=devices)
    return population.map(loss, shared=(0,), name="centre"), population.replicate(constants)


def _traced(
    loss_fn: LossFunction, minima: Signature, settings: Signature | None
) -> tuple[list[Any], Callable[[Tree, Params, Tree], jax.Array]]:
    """What a loss closes over, and it as ``(constants, params, settings) -> [] float32``.

    Matrix products are traced at full float32 precision (no TF32) unless the loss asks for another.
    """
    plain = unjitted(loss_fn)

    def loss(params: Params, values: Tree) -> jax.Array:
        if settings is None:
            return jnp.asarray(loss_of(plain)(params), jnp.float32)
        with_values = loss_of(lambda moved: plain(moved, values))  # type: ignore[call-arg]
        return jnp.asarray(with_values(params), jnp.float32)

    values = None if settings is None else shapes_of(settings, stacked=True)
    with jax.default_matmul_precision("highest"):
        return hoisted(loss, shapes_of(minima, stacked=True), values)


class _Rays:
    """The program of one search, loss and draw from minima of one shape; compiled when called.

    The instances of its population are pairs of a minimum and a share of its chunks; shares make
    the pairs a multiple of the devices, so that none is idle.
    """

    def __init__(
        self,
        search: Search,
        draw: Draw,
        traced: tuple[list[Any], Callable[[Tree, Params, Tree], jax.Array]],
        minima: int,
        directions: int,
        chunk: int,
        devices: tuple[jax.Device, ...],
    ) -> None:
        self._search, self._draw = search, draw
        constants, self._loss = traced
        self._minima, self._directions, self.chunk = minima, directions, chunk
        self._shares = len(devices) // math.gcd(minima, len(devices))
        self._population = Population(minima * self._shares, devices=devices)
        self._constants = self._population.replicate(constants)
        self._mapped: Mapped | None = None

    def __call__(self, stacked: tuple, operand: Tree, first: int, *, progress: bool) -> Tree:
        """What ``run`` returns; ``stacked`` are minima, settings, and what the search needs."""
        pairs = jax.tree.map(
            lambda leaf: np.repeat(np.asarray(leaf), self._shares, axis=0), stacked
        )
        share = np.tile(np.arange(self._shares, dtype=np.int32), self._minima)
        placed = self._population.place((*pairs, share))
        shared = (self._population.replicate(operand), self._constants)
        if not self.chunk:
            params, settings = placed[0], placed[1]
            self.chunk = self._fastest(params, settings, self._constants)
        if self._mapped is None:
            self._mapped = self._population.map(self._wave, shared=(4, 5, 6), name="rays")
        return self._waves((*placed, *shared), first, progress)

    @property
    def _chunks(self) -> int:
        """Of every share; the last ones may hold lanes that are not live."""
        return -(-self._directions // (self.chunk * self._shares))

    def _directions_of(self, operand: Tree, params: Params, numbers: jax.Array) -> Tree:
        """Directions [c, ...] by their numbers."""
        draw = partial(self._draw, operand, params)
        if len(numbers) == 1:
            return jax.tree.map(lambda leaf: leaf[None], draw(numbers[0]))
        return jax.vmap(draw)(numbers)

    def _losses(
        self, constants: Tree, params: Params, settings: Tree, directions: Tree
    ) -> Callable[[jax.Array], jax.Array]:
        """Distances [c] along directions [c, ...] to losses [c]."""

        def one(distance: jax.Array, direction: Tree) -> jax.Array:
            return self._loss(constants, Line(params, direction).at(distance), settings)

        def losses(distances: jax.Array) -> jax.Array:
            if len(distances) > 1:
                return jax.vmap(one)(distances, directions)
            # One lane is no batch: batched operations of size one can be far slower.
            alone = jax.tree.map(lambda leaf: leaf[0], directions)
            return one(distances[0], alone)[None]

        return losses

    def _wave(
        self,
        params: Params,
        settings: Tree,
        own: Tree,
        share: jax.Array,
        operand: Tree,
        constants: Tree,
        which: Tree,
    ) -> Tree:
        """``which["count"]`` chunks of one minimum and share: [chunks, c, ...], zero beyond."""
        lanes = jnp.arange(self.chunk, dtype=jnp.int32)

        def chunk(index: Any) -> Tree:
            numbers = ((which["offset"] + index) * self._shares + share) * self.chunk + lanes
            directions = self._directions_of(operand, params, which["first"] + numbers)
            losses = self._losses(constants, params, settings, directions)
            return self._search(losses, own, numbers < self._directions, operand)

        shapes = jax.eval_shape(chunk, 0)
        empty = jax.tree.map(lambda one: jnp.zeros((self._chunks, *one.shape), one.dtype), shapes)

        def body(index: jax.Array, found: Tree) -> Tree:
            def put(all_of: jax.Array, one: jax.Array) -> jax.Array:
                return lax.dynamic_update_index_in_dim(all_of, one, index, 0)

            return jax.tree.map(put, found, chunk(index))

        # The compiler does not know the count, and so cannot make one chunk another program.
        return lax.fori_loop(0, which["count"], body, empty)

    def _waves(self, arguments: tuple, first: int, progress: bool) -> Tree:
        """All chunks, some at a time, so that the host can tell how far they are."""
        assert self._mapped is not None
        offset, count, parts, told = 0, 1, [], 0

        def which() -> Tree:
            scalars = {"first": first, "offset": offset, "count": count}
            return self._population.replicate(jax.tree.map(np.int32, scalars))

        if not self._mapped.compilations:
            self._mapped.compile(*arguments, which())
        bar = Progress(self._minima * self._directions, "direction", shown=progress)
        while offset < self._chunks:
            start = time.perf_counter()
            found = self._population.fetch(self._mapped(*arguments, which()))
            seconds = time.perf_counter() - start
            parts.append(jax.tree.map(lambda leaf, count=count: leaf[:, :count], found))
            offset += count
            made = self._minima * min(offset * self._shares * self.chunk, self._directions)
            bar.update(made - told)
            told = made
            faster = int(count * WAVE_SECONDS / max(seconds, 1e-6))
            count = max(1, min(faster, 16 * count, self._chunks - offset))
        bar.close()
        return jax.tree.map(lambda *leaves: self._in_order(np.concatenate(leaves, axis=1)), *parts)

    def _in_order(self, found: np.ndarray) -> np.ndarray:
        """[minima * shares, chunks, c, ...] to [minima, directions, ...]."""
        rest = found.shape[3:]
        found = found.reshape(self._minima, self._shares, self._chunks, self.chunk, *rest)
        found = np.swapaxes(found, 1, 2).reshape(self._minima, -1, *rest)
        return found[:, : self._directions]

    def _fastest(self, params: Tree, settings: Tree, constants: Tree) -> int:
        """The chunk size with the least time a loss, all devices at work.

        Another size is tried where there is memory, and where it may save more than compiling it
        takes.
        """
        best, least = 1, math.inf
        each = -(-self._directions // self._shares)
        limit = memory_limit(self._population.devices)
        once, often = (self._population.replicate(np.int32(n)) for n in (1, REPEATS))
        for size in CHUNKS:
            if size > each:
                break
            trial = self._population.map(partial(self._trial, size), shared=(2, 3), name="probe")
            arguments = (params, settings, constants)
            trial.compile(*arguments, once)
            if size > 1 and trial.peak_bytes() > limit / 2:
                break
            if _lap(partial(trial, *arguments, once)) > ALONE_SECONDS * self._population.per_device:
                break
            seconds = _lap(partial(trial, *arguments, often)) / size
            if seconds > GAIN * least:
                break
            best, least = size, seconds
            if seconds * each < trial.compile_seconds:
                break
        return best

    def _trial(
        self, size: int, params: Params, settings: Tree, constants: Tree, repeats: jax.Array
    ) -> jax.Array:
        """Some evaluations of ``size`` lanes, for the probe; any direction is as good."""
        lanes = 1 + jnp.arange(size, dtype=jnp.float32) / size
        directions = jax.tree.map(
            lambda leaf: jax.vmap(lambda lane: (lane * leaf).astype(leaf.dtype))(lanes), params
        )
        losses = self._losses(constants, params, settings, directions)

        def body(_: Any, last: jax.Array) -> jax.Array:
            # Distances that hang on the last losses: no evaluation can be left out.
            return losses(jnp.where(jnp.isfinite(last), 1e-3, 2e-3))

        return lax.fori_loop(0, repeats, body, jnp.zeros(size))


def _lap(call: Callable[[], Any]) -> float:
    """Least seconds of three calls after one that does not count; of one call if it is long."""
    laps = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(call())
        laps.append(time.perf_counter() - start)
        if laps[0] > 1:
            break
    return min(laps[1:] or laps)


@remembered
def _program(
    functions: tuple[Search, Draw, LossFunction],
    minima: Signature,
    settings: Signature | None,
    others: Signature,
    sizes: tuple[int, int],
    devices: tuple[jax.Device, ...],
) -> _Rays:
    del others  # another program for other shapes
    search, draw, loss_fn = functions
    traced = _traced(loss_fn, minima, settings)
    return _Rays(search, draw, traced, minima[1][0][0][0], *sizes, devices)
