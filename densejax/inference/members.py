"""All members of an ensemble on one window: their probabilities, or what is kept of them.

``member_probabilities`` gives those of every member. ``TileEnsemble`` is for streams: a tile's
members are evaluated one after another in one compiled program, and what leaves the device is a
byte a voxel and map. Tiles are spread over devices by ``Population``, or go to one device that has
all cores, or several at a time side by side: a probe on the real window tells which is fastest. One
tile at a time, a tile's bits depend on nothing else; side by side they may differ in rounding, so
that a prediction keeps to what it began with.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.inference.tiles import Views, Windowing
from densejax.population import Population, memory_limit
from densejax.typing import Array, Params, Tree

Network = Callable[..., Any]
Precision = Literal["float32", "bfloat16"]

NOT_PREDICTED = 255
SIDE_BY_SIDE = (2, 4, 8)
# bfloat16 is taken where labels and mean probabilities of the real window agree so well; a wrong
# kernel misses by far, rounding to 8 bits moves few voxels at the edge between two classes.
LEAST_AGREEMENT, LARGEST_DIFFERENCE = 0.995, 0.005

_ON_DEVICE = (np.uint8, np.int8, np.uint16, np.int16, np.float32)
_CODES: dict[str, tuple[tuple[bool, ...], ...]] = {
    # (reflect z, reflect y, reflect x, swap y and x)
    "one": ((False, False, False, False),),
    "flips": tuple((*code, False) for code in itertools.product((False, True), repeat=3)),
    "turns": tuple((False, *code) for code in itertools.product((False, True), repeat=3)),
}


@dataclass(frozen=True)
class Plan:
    """How tiles are spread.

    Attributes:
      devices: how many are used; each holds all members.
      side_by_side: tiles that a device evaluates at once, as a batch; 1 is one after another.
    """

    devices: int = 1
    side_by_side: int = 1

    @property
    def tiles(self) -> int:
        """Tiles of one call."""
        return self.devices * self.side_by_side


def view_count(views: Views) -> int:
    """How many views are averaged: 1, the 8 reflections, or the 8 turns and reflections of planes.

    Raises:
      ValueError: the name is unknown.
    """
    if views not in _CODES:
        raise ValueError(f"views {views!r}; expected one of {', '.join(_CODES)}")
    return len(_CODES[views])


def member_probabilities(
    network: Network, members: Params, *, views: Views = "one"
) -> Callable[[np.ndarray], np.ndarray]:
    """All members' probabilities of a window in one compiled program.

    Args:
      network: ``(params, [b, z, y, x, 1]) -> (logits, out)``.
      members: stacked parameters, [k, ...].
      views: of the window that each member's probabilities are averaged over.

    Returns:
      A function of a window [z, y, x] that returns [k, z', y', x', c] float32.
    """
    population = Population(_size(members))
    program = population.map(
        lambda params, tile: _share(network, params, tile, views), shared=(1,), name="prediction"
    )
    placed = population.place(members)
    return lambda tile: population.fetch(program(placed, population.replicate(tile)))


class TileEnsemble:
    """Members of one network, compiled for one window."""

    def __init__(
        self,
        network: Network,
        members: Params,
        windowing: Windowing,
        *,
        dtype: Any,
        grey: tuple[float, float],
        plan: Plan,
        probabilities: bool = False,
        devices: Sequence[jax.Device] | None = None,
        precision: Precision = "float32",
    ) -> None:
        """Compile; the members are copied to every device.

        Args:
          network: ``(params, [b, z, y, x, 1]) -> (logits [b, z', y', x', c], out)``.
          members: stacked parameters, [k, ...].
          windowing: its ``window`` is a tile's shape; its ``blend`` says what is computed of it:
            ``centre`` maps of bytes, ``gaussian`` the mean probabilities, to be blended.
          dtype: of the volume.
          grey: mean and deviation of the grey levels, by which a tile is standardised.
          plan: how tiles are spread.
          probabilities: keep the mean probabilities as bytes, too.
          devices: to choose from, all local ones by default.
          precision: ``float32`` keeps full float32 products also on an accelerator.

        Raises:
          MemoryError: the program does not fit on a device; the message has both sizes.
        """
        size, window = _size(members), windowing.window
        self.window, self.plan = window, plan
        self.dtype = _tile_dtype(dtype)
        chosen = tuple(devices or jax.local_devices())[: plan.devices]
        strategy: Any = "vmap" if plan.side_by_side > 1 else "map"
        self._population = Population(plan.tiles, devices=chosen, strategy=strategy)

        def one(tile: jax.Array, members: Params, grey: jax.Array) -> Tree:
            if precision == "bfloat16":
                return _reduce(network, members, (tile, grey), windowing, probabilities)
            with jax.default_matmul_precision("float32"):
                return _reduce(network, members, (tile, grey), windowing, probabilities)

        self._program = self._population.map(one, shared=(1, 2), name="tile")
        self._shared = (
            self._population.replicate(members),
            self._population.replicate(np.array(grey, np.float32)),
        )
        tile = jax.ShapeDtypeStruct(window, self.dtype)
        shapes = [jax.tree.map(_shape_of, shared) for shared in self._shared]
        self._program.compile(self._population.placed_shapes(tile), *shapes)
        self.peak_bytes = self._program.peak_bytes()
        limit = memory_limit(chosen)
        if self.peak_bytes > limit:
            raise MemoryError(
                f"a tile of {window} with {size} members needs {self.peak_bytes / 1e9:.2f} GB on "
                f"each of {plan.devices} devices, and {limit / 1e9:.2f} GB are available: choose a "
                "smaller --window or fewer members"
            )

    def start(self, tiles: Sequence[np.ndarray]) -> tuple[int, Tree]:
        """Send up to ``plan.tiles`` tiles [z, y, x] off; returns what ``finish`` takes."""
        batch = np.empty((self.plan.tiles, *self.window), self.dtype)
        for place, tile in enumerate(tiles):
            batch[place] = tile
        batch[len(tiles) :] = batch[0]
        return len(tiles), self._program(self._population.place(batch), *self._shared)

    def finish(self, started: tuple[int, Tree]) -> list[dict[str, np.ndarray]]:
        """Wait for tiles.

        Returns:
          For each: with ``centre``, ``labels``, ``entropy`` and ``disagreement`` uint8 [z, y, x]
          and on request ``probabilities`` uint8 [c, z, y, x]; with ``gaussian``, ``mean`` float32
          [c, z, y, x] and ``disagreement`` float32 [z, y, x].
        """
        count, placed = started
        maps = self._population.fetch(placed)
        return [{name: array[place] for name, array in maps.items()} for place in range(count)]


def _tile_dtype(dtype: Any) -> np.dtype:
    """The dtype in which a volume's voxels go to the device: their own where it is a small one."""
    kind = np.dtype(dtype)
    if kind == np.dtype(bool):
        return np.dtype(np.uint8)
    return kind if kind in _ON_DEVICE else np.dtype(np.float32)


def choose_plan(
    make: Callable[[Plan], TileEnsemble],
    tile: np.ndarray,
    *,
    devices: Sequence[jax.Device],
    side_by_side: int | None = None,
) -> tuple[TileEnsemble, dict[str, float]]:
    """Time the ways of spreading tiles and keep the fastest that fits.

    Args:
      make: an ensemble of a plan.
      tile: [z, y, x], a window of the volume.
      devices: that may be used.
      side_by_side: tiles a device at once, where a prediction has begun with it.

    Returns:
      The ensemble, and tiles a second of each plan that was timed, by what it is called; none where
      a prediction has begun and there is one plan only.

    Raises:
      MemoryError: not even one tile fits.
    """
    counts = sorted({1, len(devices)})
    batches: Sequence[int] = (1,) if devices[0].platform == "cpu" else (1, *SIDE_BY_SIDE)
    if side_by_side is not None:
        batches = (side_by_side,)
    plans = [Plan(count, batch) for batch, count in itertools.product(batches, counts)]
    if len(plans) == 1 and side_by_side is not None:
        return make(plans[0]), {}
    speeds: dict[str, float] = {}
    best: tuple[float, TileEnsemble] | None = None
    refused: MemoryError | None = None
    for plan in plans:
        try:
            ensemble = make(plan)
        except MemoryError as error:
            refused = error
            continue
        speed = plan.tiles / _seconds(ensemble, tile)
        speeds[f"{plan.devices} devices x {plan.side_by_side} side by side"] = speed
        if best is None or speed > best[0]:
            best = (speed, ensemble)
    if best is None:
        assert refused is not None
        raise refused
    return best[1], speeds


def parity(reference: TileEnsemble, other: TileEnsemble, tile: np.ndarray) -> tuple[float, float]:
    """How two ensembles agree on a tile; both with ``gaussian``, which keeps probabilities.

    Returns:
      Share of voxels with the same label, and mean absolute difference of the mean probabilities.
    """
    a, b = (e.finish(e.start([tile]))[0]["mean"] for e in (reference, other))
    return float(np.mean(a.argmax(0) == b.argmax(0))), float(np.mean(np.abs(a - b)))


def agrees(measured: tuple[float, float]) -> bool:
    """Whether ``parity`` is good enough to predict in the lower precision."""
    return measured[0] >= LEAST_AGREEMENT and measured[1] <= LARGEST_DIFFERENCE


def maps_of(mean: np.ndarray, disagreement: np.ndarray, *, probabilities: bool) -> dict:
    """Maps of bytes from blended probabilities.

    Args:
      mean: [c, z, y, x] float32.
      disagreement: [z, y, x] float32, 0 to 1.
      probabilities: keep them.

    Returns:
      As ``TileEnsemble.finish`` with ``centre``.
    """
    maps = {
        "labels": np.empty(mean.shape[1:], np.uint8),
        "entropy": np.empty(mean.shape[1:], np.uint8),
        "disagreement": _byte(disagreement, np),
    }
    for z in range(mean.shape[1]):  # a plane at a time: logarithms of a whole block take its size
        plane = mean[:, z]
        maps["labels"][z] = plane.argmax(0)
        maps["entropy"][z] = _byte(_entropy(plane, 0, np), np)
    if probabilities:
        maps["probabilities"] = _byte(mean, np)
    return maps


def _reduce(
    network: Network,
    members: Params,
    seen: tuple[jax.Array, jax.Array],
    windowing: Windowing,
    probabilities: bool,
) -> dict[str, jax.Array]:
    tile, grey = seen
    image = (tile.astype(jnp.float32) - grey[0]) / grey[1]
    shape = jax.eval_shape(lambda: _share(network, first_of(members), image, windowing.views)).shape

    def member(total: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
        share = _share(network, params, image, windowing.views)
        return total + share, jnp.argmax(share, axis=-1).astype(jnp.uint8)

    total, own = jax.lax.scan(member, jnp.zeros(shape, jnp.float32), members)
    mean = total / _size(members)
    labels = jnp.argmax(mean, axis=-1).astype(jnp.uint8)
    disagreement = jnp.mean((own != labels).astype(jnp.float32), axis=0)
    if windowing.blend == "gaussian":
        return {"mean": jnp.moveaxis(mean, -1, 0), "disagreement": disagreement}
    maps = {
        "labels": labels,
        "entropy": _byte(_entropy(mean, -1, jnp), jnp),
        "disagreement": _byte(disagreement, jnp),
    }
    if probabilities:
        maps["probabilities"] = jnp.moveaxis(_byte(mean, jnp), -1, 0)
    return maps


def _size(members: Params) -> int:
    return len(jax.tree.leaves(members)[0])


def _share(network: Network, params: Params, image: Array, views: Views) -> jax.Array:
    """A member's probabilities, [z, y, x, c] float32."""

    def seen(image: jax.Array) -> jax.Array:
        logits = network(params, image[None, ..., None])[0][0]
        return jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)

    return _average_views(seen, image, views=views)


def _entropy(mean: Any, axis: int, xp: Any) -> Any:
    """Of probabilities, divided by its largest value."""
    total = -xp.sum(mean * xp.log(xp.maximum(mean, 1e-30)), axis=axis)
    return total / np.float32(np.log(mean.shape[axis]))


def _byte(share: Any, xp: Any) -> Any:
    return xp.rint(255 * xp.clip(share, 0, 1)).astype(xp.uint8)


def first_of(members: Params) -> Params:
    """The first of stacked members, alone."""
    return jax.tree.map(lambda leaf: leaf[0], members)


def _shape_of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _seconds(ensemble: TileEnsemble, tile: np.ndarray) -> float:
    """Least time of a call, of two after one that warms up."""
    tiles, laps = [tile] * ensemble.plan.tiles, []
    for _ in range(3):
        start = time.perf_counter()
        ensemble.finish(ensemble.start(tiles))
        laps.append(time.perf_counter() - start)
    return min(laps[1:])


def _average_views(
    probabilities: Callable[[jax.Array], jax.Array], image: Array, *, views: Views
) -> jax.Array:
    """Average what a function of a window [z, y, x] says of all its views, as float32."""
    count = view_count(views)
    image = jnp.asarray(image)
    if count == 1:
        return probabilities(image)
    if views == "turns" and image.shape[1] != image.shape[2]:
        raise ValueError(
            f"quarter turns of a window {image.shape}; expected as many voxels along y as along x"
        )

    def seen(total: jax.Array, code: jax.Array) -> tuple[jax.Array, None]:
        turned = _swap(image, code[3]) if views == "turns" else image
        answer = _reflect(probabilities(_reflect(turned, code)), code)
        return total + (_swap(answer, code[3]) if views == "turns" else answer), None

    start = jnp.zeros(jax.eval_shape(probabilities, image).shape, jnp.float32)
    return jax.lax.scan(seen, start, jnp.array(_CODES[views]))[0] / count


def _reflect(block: jax.Array, code: jax.Array) -> jax.Array:
    for axis in range(3):
        block = jnp.where(code[axis], jnp.flip(block, axis), block)
    return block


def _swap(block: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.where(chosen, jnp.swapaxes(block, 1, 2), block)
