"""Fully connected networks: Chen's two layers of any width, the thesis' six hidden layers."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models.layers import Linear
from densejax.typing import Array

CHEN_WIDTHS = (512, 32, 16, 8, 4)
"""Widths of the one hidden layer in Chen 2020, chapter 3: ``MLP(widths=(w,))``."""


SWISS_ROLL_WIDTHS = (23, 16, 26, 32, 28, 31)
"""The six hidden layers of the thesis' swiss roll; 3,614 parameters with one logit."""

# As TensorFlow 1 draws dense layers by default, and as the thesis' minefield asks Keras to. Both
# libraries cut the normal at two standard deviations and widen it to make up for that.
INITIALISERS = {
    "pytorch": None,
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "glorot_normal": nn.initializers.glorot_normal(),
}


class MLP(nn.Module):
    """Linear layers with ReLU, and a linear head; the input is flattened.

    Attributes:
      classes: number of classes.
      widths: of the hidden layers. ``(512,)`` is Chen's two-layer network, six numbers the
        network of the thesis' chapter on minima (``SWISS_ROLL_WIDTHS``).
      dropout: chance that a hidden value is set to zero while ``train``; needs ``rngs={"dropout":
        key}`` in ``apply``. Stochastic passes (MC dropout) are ``apply`` with ``train=True``.
      head_std: standard deviation of a normal head with zero bias; None draws it as the others.
      initialiser: ``pytorch`` draws kernels and biases uniformly in +-1 / sqrt(fan in); the
        ``glorot`` kernels have variance 2 / (fan in + fan out) and biases of zero.
      dtype: of the computation; parameters and logits are float32.
    """

    classes: int = 10
    widths: tuple[int, ...] = (512,)
    dropout: float = 0.0
    head_std: float | None = None
    initialiser: Literal["pytorch", "glorot_uniform", "glorot_normal"] = "pytorch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify.

        Args:
          x: [b, ...], floating.
          train: whether values are dropped.

        Returns:
          logits [b, c] float32, and ``out``: 'hidden0', 'hidden1', ... [b, width] after the ReLU,
          and 'features' [b, d], what the head sees.

        Raises:
          ValueError: ``x`` has no axis beside the batch, ``dropout`` is not in [0, 1), or the
            initialiser is unknown.
        """
        if self.initialiser not in INITIALISERS:
            raise ValueError(
                f"MLP: initialiser {self.initialiser!r}; expected one of {', '.join(INITIALISERS)}"
            )
        if x.ndim < 2:
            raise ValueError(f"MLP: expected an input [b, ...], found shape {x.shape}")
        check_dropout("MLP", self.dropout)
        draw = INITIALISERS[self.initialiser]
        y = jnp.asarray(x, self.dtype).reshape(x.shape[0], math.prod(x.shape[1:]))
        out: dict[str, jax.Array] = {}
        for i, width in enumerate(self.widths):
            linear = Linear(width, initialiser=draw, dtype=self.dtype, name=f"linear{i}")
            y = nn.relu(linear(y))
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            out[f"hidden{i}"] = y
        out["features"] = y
        head_draw = draw if self.head_std is None else None
        head = Linear(
            self.classes, std=self.head_std, initialiser=head_draw, dtype=self.dtype, name="head"
        )
        return head(y).astype(jnp.float32), out


def check_dropout(network: str, dropout: float) -> None:
    """Raises: ValueError where ``dropout`` is not in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"{network}: dropout is {dropout}; expected 0 or more, below 1")
