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
    the stride is 2). Stride 1 with an odd kernel uses ``ops.convolution`` and a kernel of 1 is a
    matrix product, so that instances side by side stay fast on a CPU.

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
            y = lax.conv_general_dilated(
                x,
                w,
                (self.stride, self.stride),
                ((pad, pad), (pad, pad)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
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
        return lax.conv_general_dilated(
            jnp.asarray(x, self.dtype),
            w.astype(self.dtype),
            (1, 1),
            ((2, 2), (2, 2)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


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


def check_pictures(network: str, x: Array) -> None:
    """Raises: ValueError where ``x`` is not [b, y, x, c]."""
    if x.ndim != 4:
        raise ValueError(f"{network}: expected an input [b, y, x, c], found shape {x.shape}")
