"""Random architectures: each seed is one network, drawn from ranges that are given."""

import math
from dataclasses import dataclass

import jax
import numpy as np

from densejax.cli import option
from densejax.models.encoder_decoder import EncoderDecoder
from densejax.typing import Key

_BOTTOM = 6  # of the numbers drawn; encoder and decoder blocks follow it in turn, finest first


@dataclass(frozen=True)
class Ranges:
    """Smallest and largest value of each setting, both included.

    Those of the published search are in none of its sources; 2 to 4 poolings and 1 to 6
    convolutions a block are what its table of results implies (Emam 2022, table 4.1).
    """

    poolings: tuple[int, ...] = option((2, 4), "smallest,largest number of poolings")
    width: tuple[int, ...] = option((4, 12), "smallest,largest width of the finest scale")
    convolutions: tuple[int, ...] = option((1, 6), "fewest,most convolutions of a block")
    cubes: tuple[int, ...] = option(
        (0, 2), "fewest,most of the finest scales with 3x3x3 convolutions (published: none)"
    )
    window: tuple[float, ...] = option(
        (0.5, 1.0), "smallest,largest side of the window as a share of --window's"
    )
    learning_rate: tuple[float, ...] = option((3e-4, 3e-3), "smallest,largest rate of Adam")
    l2: tuple[float, ...] = option((1e-9, 1e-4), "smallest,largest penalty on all parameters")


@dataclass(frozen=True)
class Architecture:
    """One network and how it is trained; see ``EncoderDecoder``. ``window`` is (z, y, x)."""

    width: int
    encoder: tuple[int, ...]
    bottom: int
    decoder: tuple[int, ...]
    cubes: int
    window: tuple[int, int, int]
    learning_rate: float
    l2: float

    def model(self, classes: int) -> EncoderDecoder:
        """The network."""
        return EncoderDecoder(
            classes, self.width, self.encoder, self.bottom, self.decoder, self.cubes
        )

    def settings(self) -> dict[str, float]:
        """What was drawn, as numbers: a column each of the search's tables and pictures."""
        blocks = (*self.encoder, self.bottom, *self.decoder)
        return {
            "poolings": len(self.encoder),
            "width": self.width,
            "convolutions": sum(blocks),
            "cubes": self.cubes,
            "window": self.window[1],
            "learning_rate": self.learning_rate,
            "l2": self.l2,
        }

    def __str__(self) -> str:
        """One line for people."""
        blocks = "-".join(map(str, (*self.encoder, self.bottom, *reversed(self.decoder))))
        return (
            f"width {self.width}, convolutions {blocks} (down, bottom, up), {self.cubes} scales "
            f"with 3x3x3, window {self.window}, learning rate {self.learning_rate:.2g}, "
            f"L2 {self.l2:.1g}"
        )


def draw_architecture(key: Key, ranges: Ranges, *, window: tuple[int, int, int]) -> Architecture:
    """Draw one architecture.

    Whole numbers are uniform, the learning rate and the penalty uniform in their logarithm, each
    block's convolutions for themselves. Sides of windows are multiples of 2 to the largest number
    of poolings, so that no pooling loses a voxel. Each setting has a random number of its own:
    another range of one leaves what was drawn for the others.

    Source: the random search of Emam (2022), chapter 4. Departures: it also drew the width of each
    block, and L1 and L2 penalties of weights and biases apart; here width doubles with each scale
    and one L2 penalty holds for all.

    Args:
      key: a jax key.
      ranges: of each setting.
      window: largest input window (z, y, x), in voxels.

    Raises:
      ValueError: a range is not two numbers in order, or none can be drawn from it; or the window
        is too small for the poolings.
    """
    check_ranges(ranges, window=window)
    count = _BOTTOM + 1 + 2 * ranges.poolings[1]
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(np.arange(count))
    numbers = np.asarray(jax.vmap(jax.random.uniform)(keys), float)
    poolings = _whole(numbers[0], ranges.poolings)
    sides = [_side(numbers[3], side, ranges) for side in window[1:]]
    bottom, *blocks = (_whole(u, ranges.convolutions) for u in numbers[_BOTTOM:])
    return Architecture(
        width=_whole(numbers[1], ranges.width),
        encoder=tuple(blocks[::2][:poolings]),
        bottom=bottom,
        decoder=tuple(blocks[1::2][:poolings]),
        cubes=_whole(numbers[2], ranges.cubes),
        window=(window[0], sides[0], sides[1]),
        learning_rate=_logarithmic(numbers[4], ranges.learning_rate),
        l2=_logarithmic(numbers[5], ranges.l2),
    )


def check_ranges(ranges: Ranges, *, window: tuple[int, int, int]) -> None:
    """Refuse ranges from which nothing sensible can be drawn; see ``draw_architecture``."""
    least = {"poolings": 1, "width": 1, "convolutions": 1, "cubes": 0}
    for name, values in vars(ranges).items():
        if len(values) != 2 or values[0] > values[1]:
            raise ValueError(f"--ranges.{name} takes smallest,largest; found {tuple(values)}")
        if name in least and values[0] < least[name]:
            raise ValueError(f"--ranges.{name} begins at {values[0]}; expected {least[name]} or up")
        if name not in least and values[0] <= 0:
            raise ValueError(f"--ranges.{name} begins at {values[0]:g}; expected more than 0")
    if ranges.window[1] > 1:
        raise ValueError(f"--ranges.window ends at {ranges.window[1]:g}; expected at most 1")
    unit = 2 ** ranges.poolings[1]
    if min(window[1:]) < unit:
        raise ValueError(f"--window={window}: {ranges.poolings[1]} poolings need y and x >= {unit}")


def _side(uniform: float, largest: int, ranges: Ranges) -> int:
    unit = 2 ** ranges.poolings[1]
    low, high = (share * largest / unit for share in ranges.window)
    most = max(1, math.floor(high))
    return unit * _whole(uniform, (min(max(1, math.ceil(low)), most), most))


def _whole(uniform: float, bounds: tuple[int, ...]) -> int:
    return bounds[0] + min(int(uniform * (bounds[1] - bounds[0] + 1)), bounds[1] - bounds[0])


def _logarithmic(uniform: float, bounds: tuple[float, ...]) -> float:
    return float(bounds[0] * (bounds[1] / bounds[0]) ** uniform)
