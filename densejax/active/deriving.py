"""What is computed of a chunk of a pool: logits, probabilities, and whether it is finite."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import Array

Head: TypeAlias = tuple[jax.Array, jax.Array]


def stored(present: Collection[str], needs: Sequence[str]) -> tuple[str, ...]:
    """The arrays from which ``needs`` are read or computed, each once.

    Args:
      present: names of the pool's arrays that are there.
      needs: names of what is wanted.

    Raises:
      ValueError: one of ``needs`` is neither there nor can be computed.
    """
    return tuple(dict.fromkeys(_source(present, name) for name in needs))


def _source(present: Collection[str], name: str) -> str:
    if name in present:
        return name
    if name == "logits" and {"features", "kernel"} <= set(present):
        return "features"
    if name == "probabilities" and ("logits" in present or "kernel" in present):
        return _source(present, "logits")
    ways = {
        "logits": "logits, or features and the kernel of a linear head",
        "probabilities": "probabilities, logits, or features and the kernel of a linear head",
    }
    raise ValueError(f"this selector needs the pool's {ways.get(name, name)}")


def linear_head(kernel: Array, bias: Array | None) -> Head:
    """A head as float32 arrays.

    Args:
      kernel: [d, c] floating.
      bias: [c] floating; zero where None.

    Raises:
      ValueError: a value is not finite.
    """
    kernel = np.asarray(kernel, np.float32)
    bias = np.asarray(np.zeros(kernel.shape[1]) if bias is None else bias, np.float32)
    for name, array in (("kernel", kernel), ("bias", bias)):
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise ValueError(f"the head's {name} holds {count} values that are not finite")
    return jnp.asarray(kernel), jnp.asarray(bias)


def _derive(name: str, read: dict[str, jax.Array], head: Head | None) -> jax.Array:
    if name in read:
        return read[name]
    if name == "logits":
        assert head is not None
        # Rankings hang on small differences of logits: full float32 on every backend.
        return jnp.matmul(read["features"], head[0], precision=jax.lax.Precision.HIGHEST) + head[1]
    return jax.nn.softmax(_derive("logits", read, head), axis=-1)


def _finite(read: dict[str, jax.Array], logits: jax.Array | None) -> jax.Array:
    """False if any value read is not finite; may be False without cause, never True.

    A feature that is not finite leaves none of its row's logits finite, and a sum none of its
    column: far cheaper than to look at every value.
    """
    flags = []
    for name, array in read.items():
        if name == "features" and logits is not None:
            flags.append(jnp.isfinite(logits[:, 0]).all())
        else:
            flags.append(jnp.isfinite(array.sum(axis=0)).all())
    return jnp.stack(flags).all()


@partial(jax.jit, static_argnames="needs")
def prepare(
    read: dict[str, jax.Array], head: Head | None, *, needs: tuple[str, ...]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """What is computed of a chunk, by name, and whether all that was read is finite.

    Args:
      read: [s, ...] float32 arrays by name.
      head: kernel [d, c] and bias [c], if there is one.
      needs: names of what is wanted.

    Returns:
      (those of ``needs`` that were not read, bool: False if a value read is not finite, or, rarely,
      where finite values overflow: ``refuse`` looks closer).
    """
    logits = _logits(read, head, needs)
    known = read if logits is None else read | {"logits": logits}
    derived = {name: _derive(name, known, head) for name in needs if name not in read}
    return derived, _finite(read, logits)


def _logits(
    read: dict[str, jax.Array], head: Head | None, needs: tuple[str, ...]
) -> jax.Array | None:
    """The logits, if something of ``needs`` is computed from them by the head."""
    by_head = [n for n in needs if n in ("logits", "probabilities") and n not in read]
    if not by_head or head is None or "features" not in read:
        return None
    return _derive("logits", read, head)


class NotFiniteError(ValueError):
    """An array of the pool holds values that are not finite; ``array`` is its name."""

    def __init__(self, message: str, array: str) -> None:
        super().__init__(message)
        self.array = array


def refuse(ids: np.ndarray, read: dict[str, Array]) -> None:
    """Say which values are not finite, if any are.

    Args:
      ids: [s] rows of the pool.
      read: [>= s, ...] arrays by name.

    Raises:
      NotFiniteError: count and first row.
    """
    for name, array in read.items():
        bad = ~np.isfinite(np.asarray(array)[: len(ids)])
        bad = bad.any(axis=tuple(range(1, bad.ndim)))
        if bad.any():
            raise NotFiniteError(
                f"pool {name}: {int(bad.sum())} rows of {ids[0]} to {ids[-1]} hold values that are "
                f"not finite, the first is row {ids[np.flatnonzero(bad)[0]]}",
                name,
            )
