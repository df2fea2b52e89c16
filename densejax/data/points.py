"""Labelled points of the plane: swiss roll, spirals, rings; as the thesis' chapter on minima has.

Everything is traceable, so that a task can draw fresh points inside a compiled step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import Array, Key

TURN = 2 * np.pi


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Points:
    """Points and their classes; a pytree.

    Attributes:
      points: [n, 2] float32, x and y.
      labels: [n] int32, 0 or 1.
    """

    points: Array
    labels: Array

    def __len__(self) -> int:
        return self.points.shape[0]

    def take(self, rows: Array) -> "Points":
        """The points at ``rows``, [m] int."""
        return Points(self.points[rows], self.labels[rows])


def swiss_roll(key: Key, per_class: int, *, noise: float = 0.5) -> Points:
    """Two interleaved spirals of 600 degrees with noise, the second a mirror image of the first.

    Class 0 is ``(-1.5 a cos a, 1.5 a sin a) + noise * N(0, 1)`` with ``a = sqrt(U) * 600 degrees``
    in radians; class 1 is class 0 negated, noise included, so points come in pairs (as released by
    Huang, Emam et al. 2020; a set of independent classes would be another one).

    Args:
      key: a jax key.
      per_class: points of each class, n / 2, at least 1.
      noise: standard deviation of each coordinate, in the points' units; 0 up.

    Returns:
      n points, those of class 0 first; within about 18 of the origin.

    Raises:
      ValueError: ``per_class`` is below 1 or ``noise`` below 0.
    """
    _check(per_class=per_class, noise=noise)
    angle_key, noise_key = jax.random.split(key)
    angles = jnp.sqrt(jax.random.uniform(angle_key, (per_class,))) * (600 / 360 * TURN)
    arm = 1.5 * angles[:, None] * jnp.stack([-jnp.cos(angles), jnp.sin(angles)], axis=1)
    arm = arm + noise * jax.random.normal(noise_key, arm.shape)
    return _mirrored(arm, first_label=0)


def spirals(key: Key, per_class: int, *, cycles: float = 1.5, noise: float = 0.0) -> Points:
    """Two interleaved spirals ``5 sqrt(t) (cos t, sin t)``, t evenly spaced; the minefield's data.

    Class 1 has the plus sign and class 0 the minus sign, with noise of its own. At ``t = 0`` and
    without noise both classes hold the origin, as released: no network calls both right.

    Args:
      key: a jax key; nothing is drawn from it where ``noise`` is 0.
      per_class: points of each class, n / 2, at least 1.
      cycles: turns of each spiral, above 0; the last point lies one step short of them.
      noise: standard deviation of each coordinate; 0 up.

    Returns:
      n points, those of class 1 first.

    Raises:
      ValueError: a number is out of its range.
    """
    _check(per_class=per_class, noise=noise)
    if cycles <= 0:
        raise ValueError(f"spirals: cycles is {cycles}; expected more than 0")
    angles = np.arange(per_class) * (cycles * TURN / per_class)
    arm = 5 * np.sqrt(angles)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = _mirrored(jnp.asarray(arm, jnp.float32), first_label=1)
    shift = noise * jax.random.normal(key, found.points.shape) if noise else 0.0
    return Points(found.points + shift, found.labels)


def rings(
    *,
    gap: float = 0.001,
    inner: int = 40,
    outer: int = 80,
    between: int = 10,
    inner_radius: float = 0.4,
    outer_radius: float = 0.95,
) -> Points:
    """Concentric rings: class 0 inside, class 1 outside and in a few points just beyond class 0.

    Points are evenly spaced from the top clockwise; those between the rings are half a step of the
    inner ring further (pi / inner), so that each faces the space between two of class 0.

    Args:
      gap: distance of the points between from the inner ring, above 0.
      inner: points of class 0.
      outer: points of class 1 on the outer ring.
      between: points of class 1 at ``inner_radius + gap``.
      inner_radius: of class 0.
      outer_radius: of class 1.

    Returns:
      ``inner + outer + between`` points in the order inner, outer, between.

    Raises:
      ValueError: ``gap`` is not above 0, or a count is below 1.
    """
    for name, count in (("inner", inner), ("outer", outer), ("between", between)):
        if count < 1:
            raise ValueError(f"rings: {name} is {count}; expected at least 1")
    if gap <= 0:
        raise ValueError(f"rings: gap is {gap}; expected more than 0")
    parts = [
        _circle(inner, inner_radius, 0.0),
        _circle(outer, outer_radius, 0.0),
        _circle(between, inner_radius + gap, np.pi / inner),
    ]
    labels = np.repeat(np.array([0, 1, 1], np.int32), [inner, outer, between])
    return Points(jnp.asarray(np.concatenate(parts), jnp.float32), jnp.asarray(labels))


def split(key: Key, points: Points, sizes: Sequence[int]) -> tuple[Points, ...]:
    """Disjoint random parts of a set, each in random order.

    Args:
      key: a jax key.
      points: the set, n points.
      sizes: of the parts; together at most n.

    Returns:
      One set a size.

    Raises:
      ValueError: a size is negative, or together they are more than n.
    """
    if min(sizes, default=0) < 0 or sum(sizes) > len(points):
        raise ValueError(f"sizes {list(sizes)} of a set of {len(points)}: too many or negative")
    order = jax.random.permutation(key, len(points))
    ends = np.cumsum([0, *sizes])
    return tuple(points.take(order[a:b]) for a, b in pairwise(ends))


def _mirrored(arm: jax.Array, *, first_label: int) -> Points:
    count = arm.shape[0]
    labels = jnp.repeat(jnp.array([first_label, 1 - first_label], jnp.int32), count)
    return Points(jnp.concatenate([arm, -arm]).astype(jnp.float32), labels)


def _circle(count: int, radius: float, phase: float) -> np.ndarray:
    angles = phase + np.arange(count) * TURN / count
    return radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)


def _check(*, per_class: int, noise: float) -> None:
    if per_class < 1:
        raise ValueError(f"{per_class} points of each class; expected at least 1")
    if noise < 0:
        raise ValueError(f"noise is {noise}; expected 0 or more")
