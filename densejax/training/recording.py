"""Frames of training: arrays that a film needs of each member, kept in its folder as it trains.

What a frame shows is the experiment's business: a function of an instance's state. It runs as a
program of its own, beside those that train and judge, so that recording changes no bit of theirs.
A frame is written once, whole or not at all; the same instance at the same step has the same bits,
so that a frame that a killed run has left stands.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from densejax.io import write_npz
from densejax.population import Mapped, Population
from densejax.training.folders import MemberFolder
from densejax.typing import Array, Batch, Tree

FRAMES = "frames"


@dataclass(frozen=True)
class Recording:
    """What to keep of every member, and how often.

    Attributes:
      every: interval in steps, a multiple of the schedule's ``log_every``; the start and the end of
        training are kept as well.
      frame: ``(state, data) -> arrays by name``, a pure function of one instance.
      data: tree of NumPy arrays for ``frame``; lives on every device.
    """

    every: int
    frame: Callable[[Tree, Batch], Mapping[str, Array]]
    data: Batch


class Recorder:
    """Makes the frames of a population and writes them."""

    def __init__(self, recording: Recording, population: Population) -> None:
        self._population = population
        self._shared = population.replicate(recording.data)
        self._program: Mapped = population.map(_frame(recording), shared=(2,), name="frame")

    def keep(self, placed: Tree, due: Mapping[int, tuple[MemberFolder, int]]) -> None:
        """Write the frames of some slots.

        Args:
          placed: the population's slots.
          due: folder and step of the members whose frame is due, by slot.
        """
        missing = {slot: _path(*at) for slot, at in due.items() if not _path(*at).exists()}
        if not missing:
            return
        population = self._population
        asked = np.array([slot in missing for slot in range(population.slots)])
        frames = population.fetch(self._program(placed, population.place(asked), self._shared))
        for slot, path in missing.items():
            arrays = {name: values[slot] for name, values in frames.items()}
            write_npz(path, arrays, compressed=True, alone=True)


def frames_of(folder: str | Path) -> list[tuple[int, Path]]:
    """Steps and files of a member's frames, in the order of training.

    Args:
      folder: of the member, such as ``RUN/seeds/0007``.

    Returns:
      Nothing where no frame was recorded. ``numpy.load`` opens a file.
    """
    return sorted((int(path.stem), path) for path in (Path(folder) / FRAMES).glob("*.npz"))


def _frame(recording: Recording) -> Callable[..., Tree]:
    def frame(slot: Tree, due: jax.Array, data: Batch) -> Tree:
        def make() -> Tree:
            return dict(recording.frame(slot["state"], data))

        def leave() -> Tree:
            shapes = jax.eval_shape(make)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        return jax.lax.cond(due, make, leave)

    return frame


def _path(folder: MemberFolder, step: int) -> Path:
    return folder.path / FRAMES / f"{step:010d}.npz"
