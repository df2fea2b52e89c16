"""A linear model on products of pixels: as many parameters as a network, and no hidden layer."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densejax.models.layers import check_pictures
from densejax.typing import Array, Key


class PairwiseLinear(nn.Module):
    """Logits that are linear in the pixels and in all products of two values of a small picture.

    The linear model of the thesis (section 3.3) with 298,368 features of a CIFAR picture: its 3,072
    values, and the 295,296 products of two values, squares included, of the same picture at 16x16.
    With a bias that makes 2,983,690 parameters (the thesis says 298,369, those of one class).

    No product is ever held. The products' part is a quadratic form, ``s^T U_c s`` for each class c
    with ``s`` [d] the small picture and ``U_c`` upper triangular: two matrix products, exact in
    exact arithmetic. Products are not standardised, as published.

    Attributes:
      classes: number of classes.
      size: y and x of the small picture.
      dtype: of the computation; parameters and logits are float32.
    """

    classes: int = 10
    size: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify.

        Args:
          x: [b, y, x, c], floating, standardised.
          train: nothing.

        Returns:
          logits [b, c] float32, and ``out``: 'small' [b, size, size, c], the small picture.

        Raises:
          ValueError: ``x`` is not [b, y, x, c] or smaller than ``size``.
        """
        del train
        check_pictures("PairwiseLinear", x)
        if min(x.shape[1:3]) < self.size:
            raise ValueError(
                f"PairwiseLinear: pictures of {x.shape[1]} x {x.shape[2]} pixels; expected "
                f"{self.size} or more"
            )
        x = jnp.asarray(x, self.dtype)
        small = shrink(x, size=self.size)
        pixels, d = math.prod(x.shape[1:]), math.prod(small.shape[1:])
        bound = 1 / math.sqrt(pixels + pairs(d))
        kernels = [
            self.param(name, _uniform(bound), (rows, self.classes), jnp.float32)
            for name, rows in (("pixels", pixels), ("products", pairs(d)))
        ]
        bias = self.param("bias", _uniform(bound), (self.classes,), jnp.float32)
        linear = x.reshape(len(x), pixels) @ kernels[0].astype(self.dtype)
        form = quadratic_form(small.reshape(len(x), d), kernels[1].astype(self.dtype))
        logits = (linear + form).astype(jnp.float32) + bias
        return logits, {"small": small}


def pairs(d: int) -> int:
    """Number of products of two of ``d`` values, squares included."""
    return d * (d + 1) // 2


def quadratic_form(s: Array, kernel: Array) -> jax.Array:
    """``sum over i <= j of kernel[(i, j), c] * s_i * s_j``.

    Args:
      s: [b, d] floating.
      kernel: [d (d + 1) / 2, c] of one dtype with ``s``; rows are the pairs (0, 0), (0, 1), ...,
        (0, d - 1), (1, 1), ..., the order of scikit-learn's ``PolynomialFeatures``.

    Returns:
      [b, c]. The largest array in between has b * d * c entries.
    """
    s, (d, c) = jnp.asarray(s), (s.shape[1], kernel.shape[1])
    triangle = jnp.asarray(kernel).at[_places(d)].get(mode="fill", fill_value=0)
    rows = (s @ triangle.reshape(d, d * c)).reshape(-1, d, c)
    return jnp.einsum("bjc,bj->bc", rows, s)


def _places(d: int) -> np.ndarray:
    """[d, d] int32: the pair (i, j)'s row in the kernel, and beyond its end where i > j."""
    places = np.full((d, d), pairs(d), np.int32)
    places[np.triu_indices(d)] = np.arange(pairs(d))
    return places


def shrink(images: Array, *, size: int) -> jax.Array:
    """Pictures [b, y, x, c] resampled to ``size`` x ``size`` as PIL's bilinear ``resize`` does.

    A triangle as wide as two new pixels, cut off at the borders. PIL rounds to 8 bits afterwards.
    Commutes with a standardisation of the channels.
    """
    images = jnp.asarray(images)
    shape = (images.shape[0], size, size, images.shape[3])
    high = jax.lax.Precision.HIGHEST
    return jax.image.resize(images, shape, "linear", antialias=True, precision=high)


def _uniform(bound: float) -> Any:
    def draw(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw
