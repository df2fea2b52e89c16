"""What rounds of active learning learn from: the protocol of a subject, and its looks at a pool."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from densejax.active.rounds.records import Labelled, Plan
from densejax.active.strategies import Strategy
from densejax.training.folders import Outcome
from densejax.training.sweep import Schedule
from densejax.training.task import Task
from densejax.typing import Array, Batch, Key, Params, Tree

Of = TypeVar("Of", bound=Labelled, covariant=True)


@dataclass(frozen=True)
class Row:
    """A strategy and seed that look at a network.

    Attributes:
      place: of the round's record.
      name: of the strategy.
      seed: of the run.
      strategy: how it asks.
      network: what tells networks apart; rows with the same set share one.
    """

    place: int
    name: str
    seed: int
    strategy: Strategy
    network: str


@dataclass(frozen=True)
class Look:
    """What a row's strategy sees of the pool.

    Attributes:
      place: of the row.
      arrays: fields of ``Pool`` by name.
      columns: scores [n] by name, which the engine keeps beside the query.
      variables: of the network, for strategies that ask it themselves.
      predicted: [n] int, classes of the samples; None where a sample has no class.
    """

    place: int
    arrays: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    variables: Params | None = None
    predicted: Array | None = None


class Subject(Protocol[Of]):
    """Everything of a run that depends on what is learnt.

    Strategies of a seed are paired: nothing that a subject draws may hang on their company.
    """

    @property
    def record(self) -> type[Of]:
        """Of a round: ``Labelled`` with the columns of ``test``."""
        ...

    @property
    def score(self) -> str:
        """Name of the first column of ``test``."""
        ...

    @property
    def size(self) -> int:
        """Samples of the pool, n."""
        ...

    @property
    def held_out(self) -> np.ndarray:
        """[n] bool, samples that are never queried."""
        ...

    @property
    def images(self) -> Array:
        """[n, ...], for strategies that look at them."""
        ...

    def init_variables(self, key: Key) -> Params:
        """What the best of a network is: its fresh variables."""
        ...

    def task(self, largest: int, samples: int, number: int) -> Task:
        """The task of round ``number`` (from 0) on so many samples, of at most ``largest``."""
        ...

    def data(self, known: np.ndarray, sets: Sequence[Any], largest: int) -> Batch:
        """What a sweep shares: labels [n] that are known, and the labelled set of each row."""
        ...

    def schedule(self, samples: int, number: int, plan: Plan) -> Schedule:
        """Lengths of the trainings of a round."""
        ...

    def begin(self, slot: Tree, variables: Params) -> Tree:
        """A fresh slot that starts from the variables of a trained network."""
        ...

    def test(self, outcomes: Sequence[Outcome]) -> list[np.ndarray]:
        """Columns [k, ...] of the record; the score is nan for a network that failed."""
        ...

    def look(self, rows: Sequence[Row], load: Callable[[int], Params], key: Key) -> Iterator[Look]:
        """Look at the pool with the networks of rows, each once, in any order.

        Args:
          rows: which look.
          load: variables of the network of a place.
          key: of the round, from which stochastic passes are drawn.
        """
        ...
