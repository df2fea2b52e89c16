"""A function of one instance becomes the same function of many, over all devices.

Two levels. Over devices, ``jax.pmap``: each device runs its own share of the instances with no
communication. On each device, one of three strategies:

- ``map``: one after another. Memory of one instance's activations whatever the number of
  instances, and an instance's bits depend neither on its slot, nor on its company, nor on the
  number of devices of one kind.
- ``vmap``: side by side. Fills an accelerator that one small network leaves idle; agrees with
  ``map`` to rounding.
- ``auto``: both are compiled and timed once on the real arrays; the faster one is kept and
  remembered in a file.

The compiler never partitions the instance axis: left to do so, it returns wrong weight gradients
for a batch of one (``jit`` of ``vmap`` with a sharded instance axis, jax 0.10).

Arrays of a population come in two layouts: *stacked*, ``[k, ...]``, on the host; and *placed*,
``[devices, slots, ...]``, the leading axis spread over the devices. This is the only module that
names ``pmap``, a mesh or a sharding.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from densejax.io import write_json
from densejax.typing import Tree

AXIS = "instances"
MOST_MAPS = 16_000  # memory maps of a process beyond which unused programs are let go
Strategy = Literal["map", "vmap", "auto"]


class Population:
    """``slots`` instances over ``devices``: places arrays, maps functions, fetches results.

    Any number of slots works on any number of devices: the last device carries the unused places,
    filled with copies of the last instance, which ``fetch`` drops.
    """

    def __init__(
        self,
        slots: int,
        *,
        devices: Sequence[jax.Device] | None = None,
        strategy: Strategy = "map",
        cache: Path | None = None,
    ) -> None:
        """Lay out a population.

        Args:
          slots: number of instances, k, at least 1.
          devices: devices to use, all local ones by default; no more than ``slots`` are used.
          strategy: ``map``, ``vmap`` or ``auto`` (see the module).
          cache: file that remembers what ``auto`` chose; None remembers nothing.

        Raises:
          ValueError: ``slots`` is below 1 or the strategy is unknown.
        """
        if slots < 1:
            raise ValueError(f"a population needs at least one slot, found slots={slots}")
        if strategy not in ("map", "vmap", "auto"):
            raise ValueError(f"strategy must be map, vmap or auto, found {strategy!r}")
        self.slots = slots
        self.devices = tuple(devices if devices is not None else jax.local_devices())[:slots]
        self.strategy = strategy
        self.per_device = -(-slots // len(self.devices))
        self._cache = cache
        self._sharding = NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(AXIS))

    @property
    def capacity(self) -> int:
        """Places including the unused ones: devices times slots a device."""
        return len(self.devices) * self.per_device

    def place(self, stacked: Tree) -> Tree:
        """Stacked ``[k, ...]`` arrays to placed ``[devices, slots, ...]``."""

        def place_leaf(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            if leaf.shape[:1] != (self.slots,):
                raise ValueError(
                    f"expected {self.slots} instances on the leading axis, found {leaf.shape}"
                )
            spare = self.capacity - self.slots
            if spare:
                leaf = np.concatenate([leaf, np.repeat(leaf[-1:], spare, axis=0)])
            leaf = leaf.reshape(len(self.devices), self.per_device, *leaf.shape[1:])
            return jax.device_put(leaf, self._sharding)

        return jax.tree.map(place_leaf, stacked)

    def fetch(self, placed: Tree) -> Tree:
        """Placed ``[devices, slots, ...]`` arrays to stacked NumPy arrays ``[k, ...]``."""

        def fetch_leaf(leaf: np.ndarray) -> np.ndarray:
            return np.asarray(leaf).reshape(self.capacity, *leaf.shape[2:])[: self.slots]

        return jax.tree.map(fetch_leaf, jax.device_get(placed))

    def replicate(self, tree: Tree) -> Tree:
        """One copy of every array on every device, ``[devices, ...]``, for shared arguments."""

        def replicate_leaf(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            copies = [jax.device_put(leaf[None], device) for device in self.devices]
            shape = (len(self.devices), *leaf.shape)
            return jax.make_array_from_single_device_arrays(shape, self._sharding, copies)

        return jax.tree.map(replicate_leaf, tree)

    def placed_shapes(self, tree: Tree) -> Tree:
        """Shapes of the placed arrays, from one instance's: to compile before allocating."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (len(self.devices), self.per_device, *leaf.shape), leaf.dtype
            ),
            tree,
        )

    def replicated_shapes(self, tree: Tree) -> Tree:
        """Shapes of shared arrays as ``replicate`` makes them."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((len(self.devices), *leaf.shape), leaf.dtype), tree
        )

    def map(
        self,
        function: Callable[..., Tree],
        *,
        shared: Sequence[int] = (),
        donate: Sequence[int] = (),
        name: str = "",
    ) -> "Mapped":
        """The function of one instance as a compiled function of the population.

        Args:
          function: pure function of one instance's arrays (and of shared ones).
          shared: positions of the arguments that all instances share, from ``replicate``.
          donate: positions of placed arguments whose memory the results may take over.
          name: what the function is called in the file of ``auto`` choices.

        Returns:
          A callable of placed (and replicated) arrays that returns placed arrays.
        """
        return Mapped(self, function, tuple(shared), tuple(donate), name or function.__name__)

    def remembered(self, name: str) -> str | None:
        """The strategy that an earlier probe chose for ``name``, if it is on file."""
        if self._cache is None or not self._cache.exists():
            return None
        return json.loads(self._cache.read_text()).get(name)

    def remember(self, name: str, strategy: str) -> None:
        """Write a probe's choice down (replaced by rename, so never half written)."""
        if self._cache is None:
            return
        known = json.loads(self._cache.read_text()) if self._cache.exists() else {}
        write_json(self._cache, known | {name: strategy})


class Mapped:
    """A function of the population: compiled at its first call, for one set of shapes."""

    def __init__(
        self,
        population: Population,
        function: Callable[..., Tree],
        shared: tuple[int, ...],
        donate: tuple[int, ...],
        name: str,
    ) -> None:
        self.population, self.name = population, name
        self._function, self._shared, self._donate = function, shared, donate
        self._compiled: Any = None
        self.compile_seconds = 0.0
        self.compilations = 0
        self.strategy: str = population.strategy

    def __call__(self, *arguments: Tree) -> Tree:
        """Return what the function makes of the arguments, of all instances."""
        if self._compiled is None:
            self.compile(*arguments)
        return self._compiled(self._counts(), *arguments)

    def compile(self, *arguments: Tree) -> "Mapped":
        """Compile ahead of the first call; ``auto`` needs real arrays, the others only shapes."""
        _make_room_for_programs()
        start = time.perf_counter()
        if self.strategy == "auto":
            self.strategy = self._choose(*arguments)
        self._compiled = self._compile(self.strategy, self._donate, *arguments)
        self.compilations += 1
        self.compile_seconds = time.perf_counter() - start
        return self

    def peak_bytes(self) -> int:
        """The compiled program's own estimate of its peak memory on one device, in bytes."""
        if self._compiled is None:
            raise ValueError(f"{self.name} is not compiled yet")
        memory = self._compiled.memory_analysis()
        if memory is None:
            return 0
        devices = len(self.population.devices)
        # Arguments and results are counted over all devices by some backends and for one by
        # others; the larger reading is the safe one to plan with.
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return int(max(held // devices, 0) + memory.temp_size_in_bytes - memory.alias_size_in_bytes)

    def _counts(self) -> jax.Array:
        size = len(self.population.devices)
        return self.population.replicate(np.int32(self.population.per_device)).reshape(size)

    def _compile(self, strategy: str, donate: tuple[int, ...], *arguments: Tree) -> Any:
        local = _side_by_side if strategy == "vmap" else _one_after_another

        def on_device(count: jax.Array, *local_arguments: Tree) -> Tree:
            return local(self._function, self._shared, count, local_arguments)

        mapped = jax.pmap(
            on_device,
            axis_name=AXIS,
            devices=self.population.devices,
            donate_argnums=tuple(position + 1 for position in donate),
        )
        return mapped.lower(self._counts(), *arguments).compile()

    def _choose(self, *arguments: Tree) -> str:
        if self.population.per_device == 1:
            return "map"
        shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments)]
        kind = self.population.devices[0].device_kind
        shape_code = zlib.crc32(str(shapes).encode())
        name = f"{self.name} {kind} jax-{jax.__version__} {shape_code:08x}"
        known = self.population.remembered(name)
        if known is not None:
            return known
        seconds = {
            strategy: self._seconds(self._compile(strategy, (), *arguments), *arguments)
            for strategy in ("map", "vmap")
        }
        best = min(seconds, key=lambda strategy: seconds[strategy])
        self.population.remember(name, best)
        return best

    def _seconds(self, compiled: Any, *arguments: Tree) -> float:
        jax.block_until_ready(compiled(self._counts(), *arguments))
        laps = []
        for _ in range(2):
            start = time.perf_counter()
            jax.block_until_ready(compiled(self._counts(), *arguments))
            laps.append(time.perf_counter() - start)
        return min(laps)


def _make_room_for_programs() -> None:
    """Let go of programs that nobody holds, once there are very many.

    JAX keeps what it has compiled. Each program takes some hundreds of memory maps, and of these
    Linux allows a process 65,530 by default: a process that trains one sweep after another would
    crash in its thirtieth or so. Programs that are held, as by ``Mapped``, stay.
    """
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


def _side_by_side(
    function: Callable[..., Tree], shared: tuple[int, ...], count: jax.Array, arguments: tuple
) -> Tree:
    del count
    axes = tuple(None if position in shared else 0 for position in range(len(arguments)))
    return jax.vmap(function, in_axes=axes)(*arguments)


def _one_after_another(
    function: Callable[..., Tree], shared: tuple[int, ...], count: jax.Array, arguments: tuple
) -> Tree:
    """A loop over the slots whose length the compiler does not know.

    With a known length of one the compiler would inline the body, fuse it with its surroundings
    and round differently: an instance's bits would depend on its company.
    """

    def pick(index: Any) -> list[Tree]:
        def take(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)

        return [
            argument if position in shared else jax.tree.map(take, argument)
            for position, argument in enumerate(arguments)
        ]

    mapped = [a for position, a in enumerate(arguments) if position not in shared]
    size = jax.tree.leaves(mapped)[0].shape[0]
    shapes = jax.eval_shape(lambda: function(*pick(0)))
    results = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shapes)

    def body(index: jax.Array, results: Tree) -> Tree:
        return jax.tree.map(
            lambda all_of, one: jax.lax.dynamic_update_index_in_dim(all_of, one, index, 0),
            results,
            function(*pick(index)),
        )

    return jax.lax.fori_loop(0, count, body, results)


def instance_key(key: jax.Array, identity: int | jax.Array) -> jax.Array:
    """The key of the instance with a global identity: the same in any slot and any company."""
    return jax.random.fold_in(key, identity)


def memory_limit(devices: Sequence[jax.Device]) -> int:
    """Bytes that each device may use: the accelerator's own limit, or a CPU device's share.

    The share is of what the machine has free now, or of the control group's limit (batch systems
    set one far below the machine's memory), or of ``DENSEJAX_MEMORY_BYTES`` (where a launcher knows
    the process's part), whichever is least.
    """
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    information = Path("/proc/meminfo")
    if information.exists():
        lines = dict(line.split(":", 1) for line in information.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and group.read_text().strip().isdigit():
        free = min(free, int(group.read_text()))
    allotted = os.environ.get("DENSEJAX_MEMORY_BYTES", "")
    if allotted.isdecimal():
        free = min(free, int(allotted))
    return free // len(devices)


def host_cores() -> int:
    """Cores that this process may use: its affinity, or all of them where there is none (macOS)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def use_all_cores() -> None:
    """Make every core of a CPU host a device of its own; call before the first array is made.

    One instance a core at a time has 1.3 times the throughput of one instance on all cores
    (measured on two). The number stands if it was set already, or if jax has started.

    An instance's bits depend on how many cores the process has, whatever the number of devices: XLA
    divides the sums of a matrix product among the process's threads.
    """
    if getattr(jax.config, "jax_num_cpu_devices", 0) < 1:
        try:
            jax.config.update("jax_num_cpu_devices", host_cores())
        except RuntimeError:
            pass
