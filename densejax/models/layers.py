"""Layers shared by the segmentation networks, and the arithmetic of their shapes."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.ops.convolution import convolution
from densejax.ops.transposed import transposed_convolution
from densejax.typing import Array, Key, Params

Sizes = tuple[int, ...]
Activation = Callable[[jax.Array], jax.Array]


class Conv(nn.Module):
    """Convolution with bias, [b, z, y, x, c_in] -> [b, z', y', x', features].

    Glorot-uniform kernel, zero bias, both float32; computed in ``dtype``.
    """

    features: int
    kernel: tuple[int, int, int]
    padding: str = "SAME"
    activation: Activation | None = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        y = convolution(x.astype(self.dtype), kernel, padding=self.padding) + bias  # type: ignore[arg-type]
        return y if self.activation is None else self.activation(y)


class UpConv(nn.Module):
    """Transposed convolution with kernel = stride and bias, linear.

    [b, z, y, x, c_in] -> [b, kz * z, ky * y, kx * x, features]; initialised as ``Conv``.
    """

    features: int
    kernel: tuple[int, int, int] = (1, 2, 2)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        y = transposed_convolution(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias.astype(self.dtype)


class Block(nn.Module):
    """Convolutions one after another, each with a ReLU: ``convs`` lists (features, kernel)."""

    convs: tuple[tuple[int, tuple[int, int, int]], ...]
    padding: str = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        for i, (features, kernel) in enumerate(self.convs):
            conv = Conv(features, kernel, self.padding, dtype=self.dtype, name=f"conv{i}")
            x = conv(x)
        return jnp.asarray(x)


def centre_crop(x: Array, sizes: Sizes) -> jax.Array:
    """Crop [b, z, y, x, c] about its centre to ``sizes`` (z, y, x), each at most that of ``x``.

    The offset is (n - size) // 2: an odd surplus loses its extra voxel at the end.
    """
    x = jnp.asarray(x)
    corner = [(n - m) // 2 for n, m in zip(x.shape[1:4], sizes, strict=True)]
    if min(corner) < 0:
        raise ValueError(f"centre_crop: cannot crop {x.shape[1:4]} to {tuple(sizes)}")
    (a, b, c), (z, y, w) = corner, sizes
    return x[:, a : a + z, b : b + y, c : c + w]


def join_skip(skip: Array, up: Array) -> jax.Array:
    """Concatenate [skip, up] in channels, both centre-cropped to the smaller, axis by axis."""
    sizes = tuple(min(n, m) for n, m in zip(skip.shape[1:4], up.shape[1:4], strict=True))
    return jnp.concatenate([centre_crop(skip, sizes), centre_crop(up, sizes)], axis=-1)


def invalid_window(network: str, window: Sizes, expected: str) -> ValueError:
    """The error of an input window that a network cannot take."""
    return ValueError(f"{network}: input window (z, y, x) = {tuple(window)}: expected {expected}")


def check_window(network: str, window: Sizes, smallest: Sizes) -> Sizes:
    """Return ``window`` as ints. Raises: ValueError where it is not 3 sizes >= ``smallest``."""
    window = tuple(int(n) for n in window)
    if len(window) != 3 or any(n < m for n, m in zip(window, smallest, strict=True)):
        raise invalid_window(network, window, f"at least {tuple(smallest)}")
    return window


def check_input(network: str, x: Array) -> None:
    """Raises: ValueError where ``x`` is not [b, z, y, x, 1]."""
    if x.ndim != 5 or x.shape[-1] != 1:
        raise ValueError(f"{network}: expected an input [b, z, y, x, 1], found shape {x.shape}")


def draw_parameters(key: Key, model: nn.Module, input_shape: Sizes) -> Params:
    """Fresh parameters of a segmentation network, all kernels from one draw of random numbers.

    The distribution is that of ``model.init``: kernels Glorot-uniform (Glorot and Bengio 2010),
    biases zero. XLA compiles each random draw for itself, and the program that fills a slot of the
    narrow hybrid took 15 to 28 s to compile on a busy CPU; one draw for all layers avoids that.

    Args:
      key: a jax key.
      model: a network made of this module's layers.
      input_shape: [b, z, y, x, 1] of an input.

    Returns:
      The variables, ``{"params": ...}``, float32.

    Raises:
      ValueError: the network has a parameter that is neither ``kernel`` nor ``bias``.
    """
    example = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = [math.prod(leaf.shape) for _, leaf in leaves]
    numbers = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    drawn, start = [], 0
    for (path, leaf), size in zip(leaves, sizes, strict=True):
        name = str(getattr(path[-1], "key", path[-1]))
        if name == "bias":
            drawn.append(jnp.zeros(leaf.shape, jnp.float32))
        elif name == "kernel":
            field = math.prod(leaf.shape[:-2])
            limit = math.sqrt(6 / (field * (leaf.shape[-2] + leaf.shape[-1])))
            drawn.append(limit * numbers[start : start + size].reshape(leaf.shape))
        else:
            raise ValueError(f"{jax.tree_util.keystr(path)} is neither a kernel nor a bias")
        start += size
    return jax.tree_util.tree_unflatten(structure, drawn)
