"""Layers that networks share: of volumes [b, z, y, x, c] and of pictures [b, y, x, c]."""

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from densejax.ops.convolution import convolution, dilated_convolution, transposed_convolution
from densejax.typing import Array, Key, Params

Sizes = tuple[int, ...]
Activation = Callable[[jax.Array], jax.Array]
NormKind = Literal["none", "instance", "group"]

EPSILON = 1e-5  # beneath the root of a variance, as in PyTorch
GROUP_CHANNELS = 8  # of a group, at least
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
HE_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Uniform in +-1 / sqrt(fan_in): what PyTorch draws for a linear layer.
LECUN_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


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


def check_input(network: str, x: Array, *, channels: int | None = 1) -> None:
    """Raises: ValueError where ``x`` is not [b, z, y, x, channels]; None takes any number."""
    if x.ndim != 5 or channels not in (None, x.shape[-1]):
        expected = f"[b, z, y, x, {'c' if channels is None else channels}]"
        raise ValueError(f"{network}: expected an input {expected}, found shape {x.shape}")


def as_planes(network: str, x: Array, dtype: Any) -> jax.Array:
    """[b, z, y, x, c] -> pictures [b * z, y, x, c] of ``dtype``. Raises: as ``check_input``."""
    check_input(network, x, channels=None)
    return jnp.asarray(x, dtype).reshape(-1, *x.shape[2:])


def as_volumes(planes: Array, like: Array) -> jax.Array:
    """The inverse of ``as_planes``: pictures -> the [b, z] of ``like``, channels as they are."""
    return jnp.asarray(planes).reshape(*like.shape[:2], *planes.shape[1:])


def check_batch(network: str, planes: Array, *, train: bool) -> None:
    """Raises: ValueError where one plane alone should give a batch norm its moments."""
    if train and planes.shape[0] < 2:
        raise ValueError(
            f"{network}: a training step of 1 plane; batch norm needs 2 or more: raise the batch, "
            "or freeze the norm (frozen_norm)"
        )


def scaled(channels: int, width: float) -> int:
    """Channels of a layer in a network of so many times the published width; at least one."""
    return max(1, round(channels * width))


def draw_parameters(key: Key, model: nn.Module, input_shape: Sizes) -> Params:
    """Fresh parameters of a segmentation network, all kernels from one draw of random numbers.

    The distribution is that of ``model.init``: kernels Glorot-uniform (Glorot and Bengio 2010),
    biases and shifts zero, scales one. A network whose ``DRAW`` is ``he`` gets kernels uniform with
    the variance 2 / fan in of He et al. 2015, as published for it. Running means are zero, running
    variances one. XLA compiles each random draw for itself, and the program
    that fills a slot of the narrow hybrid took 15 to 28 s to compile on a busy CPU; one draw for
    all layers avoids that.

    Args:
      key: a jax key.
      model: a network made of this module's layers.
      input_shape: [b, z, y, x, c] of an input.

    Returns:
      The variables, ``{"params": ...}``, and ``batch_stats`` where the network has batch norm;
      float32.

    Raises:
      ValueError: the network has a parameter that is none of ``kernel``, ``bias``, ``scale`` and
        ``shift``, and no moment.
    """
    example = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    sizes = [math.prod(leaf.shape) for _, leaf in leaves]
    numbers = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    drawn, start = [], 0
    for (path, leaf), size in zip(leaves, sizes, strict=True):
        name = str(getattr(path[-1], "key", path[-1]))
        if name in ("bias", "shift", "mean"):
            drawn.append(jnp.zeros(leaf.shape, jnp.float32))
        elif name in ("scale", "var"):
            drawn.append(jnp.ones(leaf.shape, jnp.float32))
        elif name == "kernel":
            he = getattr(model, "DRAW", "glorot") == "he"
            fans = leaf.shape[-2] if he else leaf.shape[-2] + leaf.shape[-1]
            limit = math.sqrt(6 / (math.prod(leaf.shape[:-2]) * fans))
            drawn.append(limit * numbers[start : start + size].reshape(leaf.shape))
        else:
            path_name = jax.tree_util.keystr(path)
            raise ValueError(f"{path_name} is none of kernel, bias, scale and shift, and no moment")
        start += size
    return jax.tree_util.tree_unflatten(structure, drawn)


# ---- pictures, [b, y, x, c] ----


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
      dilation: pixels from tap to tap; above 1, the kernel is odd, the stride 1 and the size kept.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    use_bias: bool = False
    initialiser: Any = HE_FAN_OUT
    dtype: Any = jnp.float32
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        w = self.param("kernel", self.initialiser, shape, jnp.float32).astype(self.dtype)
        pad = self.kernel // 2 if self.padding is None else self.padding
        x = jnp.asarray(x, self.dtype)
        if self.dilation > 1:
            if self.stride != 1 or self.padding is not None:
                raise ValueError(
                    f"Conv2d: dilation {self.dilation} with stride {self.stride} and padding "
                    f"{self.padding}: expected stride 1 and no padding of its own"
                )
            y = dilated_convolution(x[:, None], w[None], dilation=self.dilation)[:, 0]
        elif self.kernel == 1 and pad == 0:
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


class ConvNorm2d(nn.Module):
    """``Conv2d``, ``BatchNorm`` and, where ``relu``, a ReLU: [b, y, x, c_in] -> [b, y', x', c].

    Parameters of 'conv' and 'norm', each as in its layer.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    relu: bool = True
    frozen_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        conv = Conv2d(
            self.features,
            self.kernel,
            self.stride,
            use_bias=self.use_bias,
            dtype=self.dtype,
            dilation=self.dilation,
            name="conv",
        )
        y = BatchNorm(self.frozen_norm, dtype=self.dtype, name="norm")(conv(x), train=train)
        return nn.relu(y) if self.relu else y


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
