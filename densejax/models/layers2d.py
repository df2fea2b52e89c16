"""Layers shared by the networks of pictures: convolution, batch norm, linear; [b, y, x, c]."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from densejax.ops.convolution import convolution
from densejax.typing import Array, Key

HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
HE_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Uniform in +-1 / sqrt(fan_in): what PyTorch draws for a linear layer.
LECUN_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv2d(nn.Module):
    """Convolution of pictures, [b, y, x, c_in] -> [b, y', x', features].

    Zeros are padded alike on both sides, as in PyTorch (not as lax's 'SAME', which differs where
    the stride is 2). On a CPU everything is written as ``ops.convolution`` or as a matrix product,
    which stay fast where instances stand side by side.

    Attributes:
      features: channels out.
      kernel: size along y and x.
      stride: along y and x.
      padding: zeros on each side; ``kernel // 2`` where None.
      use_bias: add a bias, zero at first.
      initialiser: of the kernel [kernel, kernel, c_in, features] float32.
      dtype: of the computation.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    use_bias: bool = False
    initialiser: Any = HE_FAN_OUT
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        w = self.param("kernel", self.initialiser, shape, jnp.float32).astype(self.dtype)
        pad = self.kernel // 2 if self.padding is None else self.padding
        x = jnp.asarray(x, self.dtype)
        if self.kernel == 1 and pad == 0:
            y = jnp.einsum("byxi,io->byxo", x[:, :: self.stride, :: self.stride], w[0, 0])
        elif self.stride == 1 and 2 * pad + 1 == self.kernel:
            y = convolution(x[:, None], w[None])[:, 0]
        else:
            run = strided_folded if _on_cpu() else strided_native
            y = run(x, w, stride=self.stride, padding=pad)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class UpConv2d(nn.Module):
    """Transposed convolution without bias that doubles y and x: kernel 4, stride 2, padding 1.

    [b, y, x, c_in] -> [b, 2y, 2x, features]. The kernel [4, 4, c_in, features] is that of the
    equivalent convolution: a PyTorch weight [c_in, c_out, 4, 4] is turned round in space.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (4, 4, x.shape[-1], self.features)
        w = self.param("kernel", _torch_transposed, shape, jnp.float32)
        run = doubled_folded if _on_cpu() else doubled_native
        return run(jnp.asarray(x, self.dtype), w.astype(self.dtype))


def _torch_transposed(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """PyTorch's draw: uniform in +-1 / sqrt(c_out * ky * kx), for it counts the fan backwards."""
    bound = 1 / math.sqrt(shape[0] * shape[1] * shape[3])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015), as PyTorch's.

    The running variance is the unbiased one, moments are taken in float32. Parameters 'scale' and
    'bias' [c]; in the collection ``batch_stats`` 'mean' and 'var' [c], float32.

    Attributes:
      frozen: always use the running moments and never change them.
      momentum: weight of the new moments.
      epsilon: added to the variance.
      dtype: of the result.
    """

    frozen: bool = False
    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (c,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        y = jnp.asarray(x, jnp.float32)
        centre, spread = mean.value, var.value
        if train and not self.frozen:
            axes, n = tuple(range(y.ndim - 1)), math.prod(y.shape[:-1])
            centre = y.mean(axes)
            spread = jnp.square(y - centre).mean(axes)
            if not self.is_initializing():
                unbiased = spread * (n / max(n - 1, 1))
                mean.value = (1 - self.momentum) * mean.value + self.momentum * centre
                var.value = (1 - self.momentum) * var.value + self.momentum * unbiased
        y = (y - centre) * (scale * lax.rsqrt(spread + self.epsilon)) + bias
        return y.astype(self.dtype)


class Linear(nn.Module):
    """[..., d] -> [..., features]: 'kernel' [d, features], 'bias' [features], float32.

    Attributes:
      features: numbers out.
      std: kernel from N(0, std^2) and a bias of zero; where None both are uniform in
        +-1 / sqrt(d), PyTorch's draw.
      initialiser: of the kernel, in place of both, with a bias of zero.
      dtype: of the computation.
    """

    features: int
    std: float | None = None
    initialiser: Any = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        d = x.shape[-1]
        draw, bias_draw = self.initialiser, nn.initializers.zeros_init()
        if draw is None and self.std is None:
            draw, bias_draw = LECUN_UNIFORM, _uniform(1 / math.sqrt(d))
        elif draw is None:
            draw = nn.initializers.normal(self.std)
        kernel = self.param("kernel", draw, (d, self.features), jnp.float32)
        bias = self.param("bias", bias_draw, (self.features,), jnp.float32)
        y = jnp.asarray(x, self.dtype) @ kernel.astype(self.dtype)
        return y + bias.astype(self.dtype)


def _uniform(bound: float) -> Any:
    def draw(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def strided_native(x: jax.Array, w: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """XLA's convolution: x [b, y, x, c_in], w [k, k, c_in, c_out], zeros on each side."""
    pads = ((padding, padding), (padding, padding))
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=dims)


def strided_folded(x: jax.Array, w: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """The same with the stride folded into the channels, so that a convolution of stride 1 is left.

    XLA makes one grouped convolution of many with their own kernels; of stride 2 and on a CPU that
    is 2 to 10 times slower than this, measured on four instances.
    """
    s, (k, _, c_in, c_out) = stride, w.shape
    folds = -(-k // s)
    b, *sizes, _ = x.shape
    out = [(n + 2 * padding - k) // s + 1 for n in sizes]
    ends = [(m - 1 + folds) * s - n - padding for m, n in zip(out, sizes, strict=True)]
    pads = [(0, 0, 0), *((padding, end, 0) for end in ends), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), pads)
    rows, columns = x.shape[1] // s, x.shape[2] // s
    x = x.reshape(b, rows, s, columns, s, c_in).transpose(0, 1, 3, 2, 4, 5)
    w = jnp.pad(w, ((0, folds * s - k), (0, folds * s - k), (0, 0), (0, 0)))
    w = w.reshape(folds, s, folds, s, c_in, c_out).transpose(0, 2, 1, 3, 4, 5)
    x = x.reshape(b, 1, rows, columns, s * s * c_in)
    return convolution(x, w.reshape(1, folds, folds, -1, c_out), padding="VALID")[:, 0]


def doubled_native(x: jax.Array, w: jax.Array) -> jax.Array:
    """XLA's transposed convolution of ``UpConv2d``: x [b, y, x, c_in], w [4, 4, c_in, c_out]."""
    pads = ((2, 2), (2, 2))
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=dims)


def doubled_folded(x: jax.Array, w: jax.Array) -> jax.Array:
    """The same as one 3x3 convolution that gives the four pixels of each old one as channels."""
    b, y, x_size, _ = x.shape
    # An even pixel sees taps 0 and 2 on its old pixel and the one before, an odd one 1 and 3.
    for axis in (0, 2):
        pads = [[(0, 0)] * w.ndim for _ in range(2)]
        pads[0][axis], pads[1][axis] = (0, 2), (1, 1)
        parts = [lax.slice_in_dim(jnp.pad(w, pad), 0, 6, 2, axis) for pad in pads]
        w = jnp.stack(parts, axis + 1)
    w = w.transpose(0, 2, 4, 1, 3, 5)
    four = convolution(x[:, None], w.reshape(1, 3, 3, w.shape[2], -1))[:, 0]
    four = four.reshape(b, y, x_size, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return four.reshape(b, 2 * y, 2 * x_size, -1)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def check_pictures(network: str, x: Array) -> None:
    """Raises: ValueError where ``x`` is not [b, y, x, c]."""
    if x.ndim != 4:
        raise ValueError(f"{network}: expected an input [b, y, x, c], found shape {x.shape}")
