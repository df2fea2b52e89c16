"""What one instance is: the protocol between an experiment's subject and the sweep that runs it."""

from typing import Protocol

from densejax.typing import Batch, Key, Measures, Params, Tree


class Task(Protocol):
    """Pure functions of one instance; it knows nothing of seeds, devices, files or time.

    ``state`` is any tree of arrays. It carries whatever the instance needs to go on: parameters,
    optimiser state, its own key and its own step counter, and ``settings``.
    """

    @property
    def score(self) -> str:
        """Name of the evaluated measure that ranks instances; larger is better."""
        ...

    def init(self, key: Key, settings: Tree) -> Tree:
        """A fresh state; ``settings`` maps names to scalars that differ between instances."""
        ...

    def step(self, state: Tree, data: Batch) -> tuple[Tree, Measures]:
        """One update; measures are float scalars and include ``loss``."""
        ...

    def evaluate(self, state: Tree, data: Batch) -> Measures:
        """Measures of the current parameters; includes the score, may include count arrays."""
        ...

    def parameters(self, state: Tree) -> Params:
        """The part of the state that the best and the last of are kept."""
        ...

    def stop(self, step: int, measures: Measures) -> bool:
        """Whether to give the instance up after this evaluation (host side)."""
        ...
