"""Layers shared by the segmentation networks, and the arithmetic of their shapes."""

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.ops.convolution import convolution
from densejax.ops.transposed import transposed_convolution
from densejax.typing import Array, Key, Params

Sizes = tuple[int, ...]
Activation = Callable[[jax.Array], jax.Array]
NormKind = Literal["none", "instance", "group"]

EPSILON = 1e-5  # beneath the root of a variance, as in PyTorch
GROUP_CHANNELS = 8  # of a group, at least


class Norm(nn.Module):
    """Normalise each channel (or group of channels) of each sample, then scale and shift it.

    [b, z, y, x, c] -> the same. Instance norm (Ulyanov et al. 2016, arXiv 1607.08022) or group norm
    (Wu and He 2018, arXiv 1803.08494) with groups of at least ``GROUP_CHANNELS`` channels. The
    moments are summed in float32 in one pass: where a mean is a hundred deviations from 0 the
    deviation is good to a thousandth, which a convolution of normalised inputs is far from.

    Attributes:
      kind: ``instance``, ``group``, or ``none``, which changes nothing and has no parameters.
      planes: take the moments of each z-plane for itself, as a network that labels planes must.
    """

    kind: NormKind = "instance"
    planes: bool = False

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        x = jnp.asarray(x)
        if self.kind == "none":
            return x
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        shift = self.param("shift", nn.initializers.zeros_init(), (channels,), jnp.float32)
        lead = x.shape[0] * (x.shape[1] if self.planes else 1)
        rows = x.reshape(lead, -1, channels).astype(jnp.float32)
        mean, square = jnp.mean(rows, 1), jnp.mean(jnp.square(rows), 1)
        if self.kind == "group":
            groups = group_count(channels)
            mean, square = (
                jnp.repeat(m.reshape(lead, groups, -1).mean(-1), channels // groups, axis=-1)
                for m in (mean, square)
            )
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        gain = jax.lax.rsqrt(variance + EPSILON) * scale
        # One product and one sum a voxel: the moments are folded into the affine map.
        y = rows * gain[:, None] + (shift - mean * gain)[:, None]
        return y.reshape(x.shape).astype(x.dtype)


def group_count(channels: int) -> int:
    """Groups of a group norm: as many as divide the channels into at least ``GROUP_CHANNELS``."""
    most = max(1, channels // GROUP_CHANNELS)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


class Conv(nn.Module):
    """Convolution with bias, [b, z, y, x, c_in] -> [b, z', y', x', features], norm and activation.

    Glorot-uniform kernel, zero bias, both float32; computed in ``dtype``. A convolution with a norm
    has no bias of its own, which the norm would take away.
    """

    features: int
    kernel: tuple[int, int, int]
    padding: str = "SAME"
    activation: Activation | None = nn.relu
    dtype: Any = jnp.float32
    norm: NormKind = "none"
    norm_planes: bool = False

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, jnp.float32)
        kernel = kernel.astype(self.dtype)
        y = convolution(x.astype(self.dtype), kernel, padding=self.padding)  # type: ignore[arg-type]
        if self.norm == "none":
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        else:
            y = Norm(self.norm, planes=self.norm_planes, name="norm")(y)
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
    norm: NormKind = "none"
    norm_planes: bool = False

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        for i, (features, kernel) in enumerate(self.convs):
            x = Conv(
                features,
                kernel,
                self.padding,
                dtype=self.dtype,
                norm=self.norm,
                norm_planes=self.norm_planes,
                name=f"conv{i}",
            )(x)
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
    biases and shifts zero, scales one. XLA compiles each random draw for itself, and the program
    that fills a slot of the narrow hybrid took 15 to 28 s to compile on a busy CPU; one draw for
    all layers avoids that.

    Args:
      key: a jax key.
      model: a network made of this module's layers.
      input_shape: [b, z, y, x, 1] of an input.

    Returns:
      The variables, ``{"params": ...}``, float32.

    Raises:
      ValueError: the network has a parameter that is none of ``kernel``, ``bias``, ``scale`` and
        ``shift``.
    """
    example = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = [math.prod(leaf.shape) for _, leaf in leaves]
    numbers = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    drawn, start = [], 0
    for (path, leaf), size in zip(leaves, sizes, strict=True):
        name = str(getattr(path[-1], "key", path[-1]))
        if name in ("bias", "shift"):
            drawn.append(jnp.zeros(leaf.shape, jnp.float32))
        elif name == "scale":
            drawn.append(jnp.ones(leaf.shape, jnp.float32))
        elif name == "kernel":
            field = math.prod(leaf.shape[:-2])
            limit = math.sqrt(6 / (field * (leaf.shape[-2] + leaf.shape[-1])))
            drawn.append(limit * numbers[start : start + size].reshape(leaf.shape))
        else:
            path_name = jax.tree_util.keystr(path)
            raise ValueError(f"{path_name} is none of kernel, bias, scale and shift")
        start += size
    return jax.tree_util.tree_unflatten(structure, drawn)
