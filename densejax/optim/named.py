"""Optimisers and schedules of today's segmentation recipes, from optax, by name.

Everything that a population may vary is an argument that may be an array: a member's learning rate,
weight decay and number of steps are data of one compiled program.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from densejax.typing import Array, Params

OptimiserName = Literal["adamw", "sgd", "momentum"]
ScheduleName = Literal["polynomial", "cosine", "constant"]

POLYNOMIAL_POWER = 0.9  # as in nnU-Net
SGD_MOMENTUM = 0.99
HEAVY_MOMENTUM = 0.9  # as in DeepLab and SegNet


def named_optimiser(
    name: OptimiserName, *, weight_decay: Array | float = 0.0, clip: float = 0.0
) -> optax.GradientTransformation:
    """A direction of descent by name; multiply its updates by minus the learning rate.

    ``adamw`` decouples the decay from the moments (Loshchilov and Hutter 2019, arXiv 1711.05101);
    ``sgd`` has Nesterov's momentum of 0.99 and adds the decay to the gradient, as in nnU-Net;
    ``momentum`` is SGD with a heavy ball of 0.9 and the decay in the gradient, as in DeepLab.
    Kernels decay, biases and the scales and shifts of norms do not.

    Args:
      name: of the optimiser.
      weight_decay: factor on the kernels; a scalar that may be traced.
      clip: largest Euclidean norm of the whole gradient; 0 leaves it as it is.

    Raises:
      ValueError: the name is unknown, or ``clip`` is negative.
    """
    if clip < 0:
        raise ValueError(f"clip is {clip}; expected 0 (no clipping) or more")
    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)  # type: ignore[arg-type]
    if name == "adamw":
        parts = [optax.scale_by_adam(), decay]
    elif name == "sgd":
        parts = [decay, optax.trace(SGD_MOMENTUM, nesterov=True)]
    elif name == "momentum":
        parts = [decay, optax.trace(HEAVY_MOMENTUM)]
    else:
        raise ValueError(f"optimiser {name!r}: expected adamw, sgd or momentum")
    return optax.chain(*([optax.clip_by_global_norm(clip)] if clip else []), *parts)


def schedule_factor(
    name: ScheduleName, step: Array | int, *, steps: Array | float, warmup: Array | float
) -> jax.Array:
    """Factor on the learning rate at a step: a linear warm-up times a schedule that ends at 0.

    ``polynomial``: ``(1 - t / steps) ** 0.9``; ``cosine``: ``(1 + cos(pi t / steps)) / 2``
    (Loshchilov and Hutter 2017, arXiv 1608.03983); ``constant``: 1. The warm-up multiplies by
    ``min(1, (t + 1) / warmup)``. As optax's ``polynomial_schedule`` and ``cosine_decay_schedule``,
    which take no traced number of steps.

    Args:
      name: of the schedule.
      step: t, zero-based; may be traced. Beyond ``steps`` the schedule stays at its end.
      steps: of the whole training, above 0; may be traced.
      warmup: steps of the warm-up; below 2 there is none. May be traced.

    Returns:
      float32 [], 0 to 1.

    Raises:
      ValueError: the name is unknown.
    """
    done = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    shapes: Mapping[str, Callable[[], jax.Array]] = {
        # A floor, because the power's gradient and its value at 0 through a logarithm are not safe.
        "polynomial": lambda: jnp.maximum(1 - done, 0.0) ** POLYNOMIAL_POWER,
        "cosine": lambda: 0.5 * (1 + jnp.cos(jnp.pi * done)),
        "constant": lambda: jnp.ones_like(done),
    }
    if name not in shapes:
        raise ValueError(f"schedule {name!r}: expected one of {', '.join(shapes)}")
    rising = (jnp.asarray(step, jnp.float32) + 1) / jnp.maximum(warmup, 1.0)
    return shapes[name]() * jnp.minimum(1.0, rising)


def moving_average(
    average: Params, params: Params, *, step: Array | int, decay: Array | float
) -> Params:
    """An exponential moving average of parameters, whose memory grows with the steps at first.

    ``a <- d a + (1 - d) p`` with ``d = min(decay, (1 + t) / (10 + t))``, as in TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``: at the start it forgets the fresh parameters.

    Args:
      average: tree of arrays.
      params: of the same structure, after the step.
      step: t, zero-based.
      decay: in 0 to 1; 0 is the newest parameters.
    """
    t = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)


def _kernels(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
