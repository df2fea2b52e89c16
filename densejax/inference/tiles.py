"""Where windows lie in a volume, and which voxels are taken from which of them.

Windows have one shape and start on a product of three axes: at multiples of a stride, the last one
flush to the end, as released by Guay et al. (2021). Two ways to blend them:

- ``centre``: a voxel comes from the window in which it is most central. Distances to a window's
  border are a minimum over axes, so the window that is best along each axis for itself is as
  central as any, and the voxels that a window owns are a box: nothing is accumulated. (Where
  another window is equally central because a third axis decides, the released code takes the later
  one.)
- ``gaussian``: a weighted mean of all windows that hold the voxel, weights falling off from the
  middle with a deviation of an eighth of the window, as in nnU-Net (Isensee et al. 2021, doi
  10.1038/s41592-020-01008-z).

A *box* is three half-open intervals (z, y, x) of voxels of the whole volume.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from densejax.data.windows import Sizes, check_windows, margins, reflect_index

Interval = tuple[int, int]
Box = tuple[Interval, Interval, Interval]
Index = tuple[int, int, int]
Blend = Literal["centre", "gaussian"]
Views = Literal["one", "flips", "turns"]

GAUSSIAN_DEVIATION = 1 / 8  # of the window


@dataclass(frozen=True)
class Windowing:
    """How a volume is seen in windows, and how what they say is put together.

    Attributes:
      window: (z, y, x) of the network's input.
      output: (z, y, x) of its output, centred in the input.
      overlap: (z, y, x) that neighbouring outputs share at least; None is a third of the output, as
        released.
      blend: ``centre`` takes a voxel from the window in which it is most central, ``gaussian`` the
        weighted mean of all windows that hold it.
      views: of a window that each member's probabilities are averaged over: ``one`` as it is,
        ``flips`` the eight reflections along z, y and x, ``turns`` the eight reflections and
        quarter turns within planes.
      anisotropy: length of a voxel along each axis in units of y, for the choice of the most
        central window where a whole volume is in memory; the released code has (4, 1, 1).
    """

    window: Sizes
    output: Sizes
    overlap: Sequence[int] | None = None
    blend: Blend = "centre"
    views: Views = "one"
    anisotropy: tuple[float, float, float] = (4, 1, 1)

    @property
    def shared(self) -> tuple[int, ...]:
        """(z, y, x) that neighbouring outputs share."""
        return tuple(n // 3 for n in self.output) if self.overlap is None else tuple(self.overlap)

    def at(self, voxel_nm: Sequence[float]) -> "Windowing":
        """The same for a volume of such voxels, (z, y, x) in nm."""
        z, y, x = voxel_nm
        return replace(self, anisotropy=(z / y, 1.0, x / y))


@dataclass(frozen=True)
class Axis:
    """Windows along one axis.

    Attributes:
      size: voxels of the volume.
      window: voxels of an output window, at most ``size``.
      stride: voxels from one start to the next, 1 to ``window``.
    """

    size: int
    window: int
    stride: int

    @cached_property
    def starts(self) -> np.ndarray:
        """First voxel of each window, int64, ascending."""
        last = self.size - self.window
        return np.array([*range(0, last, self.stride), last], np.int64)

    @cached_property
    def edges(self) -> np.ndarray:
        """Window i owns the voxels ``edges[i]`` to ``edges[i + 1] - 1``; int64 [windows + 1]."""
        starts = self.starts
        # Voxel v is as far from the end of one window as from the beginning of the next where
        # start + window - v = v - next + 1; the earlier one keeps a tie.
        middle = (starts[:-1] + starts[1:] + self.window - 1) // 2 + 1
        return np.concatenate([[0], middle, [self.size]])

    def owning(self, interval: Interval) -> range:
        """Windows that own a voxel of the interval."""
        low, high = interval
        first = int(np.searchsorted(self.edges, low, "right")) - 1
        return range(first, int(np.searchsorted(self.edges, high - 1, "right")))

    def holding(self, interval: Interval) -> range:
        """Windows whose output holds a voxel of the interval."""
        low, high = interval
        first = int(np.searchsorted(self.starts, low - self.window, "right"))
        return range(first, int(np.searchsorted(self.starts, high, "left")))

    def weights(self, index: int) -> np.ndarray:
        """Gaussian weight of each voxel of a window, float64 [window].

        They are normalised: over the windows that hold a voxel, they sum to one.
        """
        start = int(self.starts[index])
        total = np.zeros(self.window)
        for other in self.holding((start, start + self.window)):
            shift = int(self.starts[other]) - start
            low, high = max(0, shift), min(self.window, self.window + shift)
            total[low:high] += self._bell[low - shift : high - shift]
        return self._bell / total

    @cached_property
    def _bell(self) -> np.ndarray:
        place = np.arange(self.window) - (self.window - 1) / 2
        return np.exp(-0.5 * np.square(place / (GAUSSIAN_DEVIATION * self.window)))


@dataclass(frozen=True)
class Grid:
    """All windows of a volume.

    Attributes:
      axes: windows along z, y and x.
      window: (z, y, x) of the network's input; the output lies in its middle.
      blend: which voxels are taken from which window.
    """

    axes: tuple[Axis, Axis, Axis]
    window: Sizes
    blend: Blend = "centre"

    @property
    def shape(self) -> Sizes:
        """(z, y, x) of the volume."""
        return _three(axis.size for axis in self.axes)

    @property
    def output(self) -> Sizes:
        """(z, y, x) of an output window."""
        return _three(axis.window for axis in self.axes)

    @property
    def overlap(self) -> Sizes:
        """(z, y, x) that neighbouring windows share at least."""
        return _three(axis.window - axis.stride for axis in self.axes)

    def windows(self, box: Box) -> list[Index]:
        """Windows that a box needs, z slowest; whatever else is predicted, it needs no other."""
        return [(z, y, x) for z, y, x in itertools.product(*self._ranges(box))]

    def count(self, box: Box) -> int:
        """How many windows a box needs."""
        return math.prod(len(needed) for needed in self._ranges(box))

    def _ranges(self, box: Box) -> list[range]:
        return [
            axis.owning(interval) if self.blend == "centre" else axis.holding(interval)
            for axis, interval in zip(self.axes, box, strict=True)
        ]

    def own(self, index: Index) -> Box:
        """The voxels that a window owns."""
        return box_of(
            (int(axis.edges[i]), int(axis.edges[i + 1]))
            for axis, i in zip(self.axes, index, strict=True)
        )

    def held(self, index: Index) -> Box:
        """The voxels that a window's output holds."""
        return box_of(
            (int(axis.starts[i]), int(axis.starts[i]) + axis.window)
            for axis, i in zip(self.axes, index, strict=True)
        )

    def weights(self, index: Index) -> np.ndarray:
        """Gaussian weights of a window, float32 [z, y, x]."""
        z, y, x = (axis.weights(i) for axis, i in zip(self.axes, index, strict=True))
        return (z[:, None, None] * y[:, None] * x).astype(np.float32)

    def input_of(self, index: Index) -> Box:
        """The voxels that a window's input holds; some may lie outside the volume."""
        edges = margins(self.window, self.output)
        return box_of(
            (low - before, low - before + size)
            for (low, _), (before, _), size in zip(
                self.held(index), edges, self.window, strict=True
            )
        )

    def region(self, box: Box) -> Box:
        """The input voxels that a box needs; some may lie outside the volume."""
        needed = self.windows(box)
        first, last = self.input_of(needed[0]), self.input_of(needed[-1])
        return box_of((a[0], b[1]) for a, b in zip(first, last, strict=True))

    def read(self, array: Any, region: Box) -> np.ndarray:
        """Read a region of a volume, mirrored where it reaches outside, [z, y, x]."""
        inside = clip(region, whole(self.shape))
        found = array[slices(inside)]
        if region == inside:
            return found
        indexes = [
            np.asarray(reflect_index(np.arange(*wide), size)) - low
            for wide, (low, _), size in zip(region, inside, self.shape, strict=True)
        ]
        return found[np.ix_(*indexes)]


def grid_of(
    shape: Sequence[int], windowing: Windowing, *, factor: Sequence[int] = (1, 1, 1)
) -> Grid:
    """Lay windows over a volume.

    Args:
      shape: (z, y, x) of the volume in voxels.
      windowing: windows, overlap and blending.
      factor: (z, y, x) by which the network pools. Strides are made multiples of it where a window
        is that wide, so that every window but the last of an axis meets the voxels in the same
        phase of the pooling.

    Raises:
      ValueError: the output window is larger than the volume, the input reaches too far beyond it,
        or an overlap is negative or not below the window.
    """
    window, output, overlap = windowing.window, windowing.output, windowing.shared
    check_windows(shape, window, output)
    if len(overlap) != 3 or any(not 0 <= o < w for o, w in zip(overlap, output, strict=True)):
        raise ValueError(
            f"overlap {tuple(overlap)} of output windows {tuple(output)}; expected three numbers "
            "(z, y, x) from 0 up, each below the window"
        )
    if windowing.blend not in ("centre", "gaussian"):
        raise ValueError(f"blend is {windowing.blend!r}; expected centre or gaussian")
    axes = []
    for size, wide, shared, pool in zip(shape, output, overlap, factor, strict=True):
        stride = int(wide - shared)
        axes.append(Axis(int(size), int(wide), stride // pool * pool if stride >= pool else stride))
    return Grid((axes[0], axes[1], axes[2]), _three(window), windowing.blend)


# A network that pools more than this is none of ours.
MOST_POOLING = 1024


def pooling_factor(output_window: Callable[[Sizes], Sequence[int]], window: Sizes) -> Sizes:
    """By how much a network pools along each axis: the step in which its output's size grows.

    Args:
      output_window: (z, y, x) of the network's input -> (z, y, x) of its output.
      window: (z, y, x) of an input that the network takes.
    """
    steps = []
    for axis in range(3):
        found: list[int] = []
        for more in range(MOST_POOLING + 1):
            if more > 64 and len(set(found)) > 1:
                break
            wider = [size + more * (a == axis) for a, size in enumerate(window)]
            try:
                found.append(output_window(_three(wider))[axis])
            except ValueError:  # a network that takes nothing but multiples
                continue
        steps.append(math.gcd(*(b - a for a, b in itertools.pairwise(found))) or 1)
    return _three(steps)


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole volume."""
    return box_of((0, size) for size in shape)


def clip(box: Box, inside: Box) -> Box:
    """The voxels that two boxes share; an interval without any has its end before its start."""
    return box_of(
        (max(low, least), min(high, most))
        for (low, high), (least, most) in zip(box, inside, strict=True)
    )


def slices(box: Box, *, origin: Sequence[int] = (0, 0, 0)) -> tuple[slice, slice, slice]:
    """The index of a box in an array whose first voxel is ``origin``."""
    z, y, x = (slice(low - o, high - o) for (low, high), o in zip(box, origin, strict=True))
    return z, y, x


def corner(box: Box) -> Sizes:
    """First voxel of a box."""
    return _three(low for low, _ in box)


def sizes(box: Box) -> Sizes:
    """(z, y, x) of a box."""
    return _three(high - low for low, high in box)


def _three(values: Any) -> Sizes:
    z, y, x = (int(value) for value in values)
    return z, y, x


def box_of(intervals: Iterable[Interval]) -> Box:
    """A box from its three intervals."""
    z, y, x = intervals
    return z, y, x
