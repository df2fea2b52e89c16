"""What trained networks say of stored pictures: logits and features of many instances at once."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from densejax.classification.task import HEAD, ImageTask
from densejax.population import Population
from densejax.typing import Array, Params


class Predictor:
    """The networks of a population over stored pictures, in one program that is compiled once."""

    def __init__(
        self, task: ImageTask, size: int, *, chunk: int = 500, features: bool = True
    ) -> None:
        """Lay the program out; it is compiled by the first chunk.

        Args:
          task: for the network and how pictures are prepared.
          size: instances at once, k.
          chunk: pictures at once.
          features: whether features are wanted beside the logits.
        """
        self.size, self._chunk, self._features = size, chunk, features
        self._population = Population(size)

        def one(variables: Params, images: jax.Array) -> tuple[jax.Array, ...]:
            logits, out = task.forward(variables, images)
            return (logits, out["features"]) if features else (logits,)

        self._program = self._population.map(one, shared=(1,), name="pictures")

    def __call__(
        self, members: Sequence[Params], images: Array
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
        """Go through the pictures, in evaluation mode and not augmented.

        Args:
          members: variables of at most k instances.
          images: [n, ...] as the task's; a memory map is read as it is needed.

        Yields:
          Rows, logits [k', s, c] float32 and features [k', s, d] (or None), chunk by chunk, for
          the k' instances given.
        """
        number, size = len(members), self._population.slots
        if not 1 <= number <= size:
            raise ValueError(f"{number} instances; expected 1 to {size}")
        padded = [*members, *[members[-1]] * (size - number)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
        placed = self._population.place(stacked)
        for start in range(0, len(images), self._chunk):
            part = np.asarray(images[start : start + self._chunk])
            real = len(part)
            if real < self._chunk:
                part = np.concatenate([part, np.repeat(part[-1:], self._chunk - real, axis=0)])
            found = self._program(placed, self._population.replicate(part))
            arrays = [a[:number, :real] for a in self._population.fetch(found)]
            yield slice(start, start + real), arrays[0], arrays[1] if self._features else None


def head_of(variables: Params) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [d, c] and bias [c] of the linear head, float32."""
    head = variables["params"][HEAD]
    return np.asarray(head["kernel"]), np.asarray(head["bias"])
