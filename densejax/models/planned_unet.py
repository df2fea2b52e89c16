"""A U-Net whose scales, kernels and widths are planned from the data: 2-D, 2.5-D or 3-D.

After nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): normalised convolutions with
leaky ReLU, kernels and strides of each scale from the voxels' anisotropy, logits of coarser scales
for deep supervision. Departures: the finest scale may be coarser than the voxels (``strides[0]``),
and then folds the voxels of a step into channels on the way in and unfolds the logits on the way
out, which costs a quarter of a full-resolution scale; pooling takes maxima.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.ops.pooling import max_pool
from densejax.typing import Array

Kernel = tuple[int, int, int]
LEAK = 0.01


def leaky_relu(x: Array) -> jax.Array:
    """Leaky ReLU with the slope of nnU-Net, 0.01."""
    return jnp.where(x > 0, x, LEAK * jnp.asarray(x))


class PlannedUNet(nn.Module):
    """Encoder and decoder of normalised convolutions, skips by concatenation.

    A scale has the width, the kernel and the stride of its place in the three tuples. A network of
    flat kernels and strides labels each z-plane for itself, with ``neighbours`` planes above and
    below it as channels (2.5-D).

    Attributes:
      classes: number of classes, c.
      widths: channels of each scale, finest first.
      kernels: (z, y, x) of the two convolutions of each scale.
      strides: (z, y, x) from the scale above; the first is from the voxels to the finest scale.
      neighbours: planes on either side that are channels of each plane; the window loses as many
        at both ends of z. More than 0 only where every kernel and stride is flat.
      block: ``plain``, or ``residual`` with a skip around the two convolutions.
      norm: of the convolutions.
      deep_supervision: return logits of the coarser scales too.
      dtype: of the computation; parameters and logits are float32.
    """

    classes: int
    widths: tuple[int, ...] = (16, 32, 64, 128)
    kernels: tuple[Kernel, ...] = ((1, 3, 3),) * 4
    strides: tuple[Kernel, ...] = ((1, 2, 2),) * 4
    neighbours: int = 0
    block: Literal["plain", "residual"] = "plain"
    norm: layers.NormKind = "instance"
    deep_supervision: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[jax.Array, dict[str, Any]]:
        """Label a window.

        Args:
          x: [b, z, y, x, 1], floating, mean 0 and standard deviation 1 over its volume.

        Returns:
          logits, [b, z', y, x, c] float32, and ``out``: 'features' of the finest scale
          [b, z', y / sy, x / sx, widths[0]], and with deep supervision 'deep', the logits of the
          coarser scales, finest first, each [b, z' / tz, y / ty, x / tx, c] float32 with t the
          scale's whole stride. (z', y, x) is ``output_window((z, y, x))``.

        Raises:
          ValueError: the input has another rank or channel count, or its window does not fit.
        """
        layers.check_input("PlannedUNet", x)
        self.output_window(x.shape[1:4])
        x = fold(self._with_neighbours(jnp.asarray(x, self.dtype)), self.strides[0])
        skips = []
        for scale, width in enumerate(self.widths):
            x = max_pool(x, self.strides[scale]) if scale else x
            x = self._block(f"encoder{scale}", scale)(x, width)
            skips.append(x)
        deep = []
        for scale in reversed(range(len(self.widths) - 1)):
            width, stride = self.widths[scale], self.strides[scale + 1]
            up = layers.UpConv(width, stride, dtype=self.dtype, name=f"up{scale}")(x)
            joined = jnp.concatenate([skips[scale], up], axis=-1)
            x = self._block(f"decoder{scale}", scale)(joined, width)
            if self.deep_supervision and scale:
                deep.append(self._predictor(f"predictor{scale}", self.classes)(x))
        cells = self.classes * math.prod(self.strides[0])
        logits = unfold(self._predictor("predictor", cells)(x), self.strides[0])
        out: dict[str, Any] = {"features": x}
        if self.deep_supervision:
            out["deep"] = tuple(level.astype(jnp.float32) for level in reversed(deep))
        return logits.astype(jnp.float32), out

    def _with_neighbours(self, x: jax.Array) -> jax.Array:
        planes = x.shape[1] - 2 * self.neighbours
        return jnp.concatenate([x[:, i : i + planes] for i in range(2 * self.neighbours + 1)], -1)

    def _block(self, name: str, scale: int) -> Callable[[jax.Array, int], jax.Array]:
        conv = partial(
            layers.Conv,
            kernel=self.kernels[scale],
            norm=self.norm,
            norm_planes=self.flat,
            dtype=self.dtype,
        )

        def plain(x: jax.Array, width: int) -> jax.Array:
            x = conv(width, activation=leaky_relu, name=f"{name}_conv0")(x)
            return conv(width, activation=leaky_relu, name=f"{name}_conv1")(x)

        def residual(x: jax.Array, width: int) -> jax.Array:
            y = conv(width, activation=leaky_relu, name=f"{name}_conv0")(x)
            y = conv(width, activation=None, name=f"{name}_conv1")(y)
            if x.shape[-1] != width:
                x = self._predictor(f"{name}_skip", width)(x)
            return leaky_relu(x + y)

        return plain if self.block == "plain" else residual

    def _predictor(self, name: str, features: int) -> layers.Conv:
        return layers.Conv(features, (1, 1, 1), activation=None, dtype=self.dtype, name=name)

    @property
    def flat(self) -> bool:
        """Whether each z-plane is labelled for itself."""
        return all(sizes[0] == 1 for sizes in (*self.kernels, *self.strides))

    @nn.nowrap
    def output_window(self, input_window: Sequence[int]) -> layers.Sizes:
        """(z, y, x) of the input -> (z, y, x) of the logits.

        Raises:
          ValueError: the window is not three multiples of the whole stride (plus the neighbours in
            z), or the settings of the scales do not go together.
        """
        scales = len(self.widths)
        if not scales == len(self.kernels) == len(self.strides):
            raise ValueError(
                f"PlannedUNet: {scales} widths, {len(self.kernels)} kernels and "
                f"{len(self.strides)} strides; expected one of each a scale"
            )
        if self.neighbours and not self.flat:
            raise ValueError(
                f"PlannedUNet: neighbours={self.neighbours} with kernels or strides along z; "
                "expected flat ones, or no neighbours"
            )
        whole = whole_stride(self.strides)
        lost = 2 * self.neighbours
        window = tuple(int(size) for size in input_window)
        if len(window) != 3 or any(
            size < step or size % step
            for size, step in zip((window[0] - lost, *window[1:]), whole, strict=True)
        ):
            expected = f"multiples of {whole}" + (f" and {lost} more in z" if lost else "")
            raise layers.invalid_window("PlannedUNet", window, expected)
        return (window[0] - lost, *window[1:])


def whole_stride(strides: Sequence[Kernel]) -> Kernel:
    """Product of the strides of all scales along z, y, x: what windows are multiples of."""
    z, y, x = (math.prod(axis) for axis in zip(*strides, strict=True))
    return z, y, x


def fold(x: Array, stride: Kernel) -> jax.Array:
    """[b, z, y, x, c] -> [b, z / sz, y / sy, x / sx, sz * sy * sx * c]: voxels into channels.

    Args:
      x: floating; sizes are multiples of the stride.
      stride: (sz, sy, sx) voxels.

    Source: the space-to-depth of Shi et al. 2016 (arXiv 1609.05158), without parameters.
    """
    x = jnp.asarray(x)
    (b, z, y, w, c), (sz, sy, sx) = x.shape, stride
    if stride == (1, 1, 1):
        return x
    x = x.reshape(b, z // sz, sz, y // sy, sy, w // sx, sx, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, z // sz, y // sy, w // sx, -1)


def unfold(x: Array, stride: Kernel) -> jax.Array:
    """The inverse of ``fold``: channels into voxels.

    Args:
      x: [b, z, y, x, sz * sy * sx * c], floating.
      stride: (sz, sy, sx) voxels.

    Returns:
      [b, z * sz, y * sy, x * sx, c].
    """
    x = jnp.asarray(x)
    (b, z, y, w, _), (sz, sy, sx) = x.shape, stride
    if stride == (1, 1, 1):
        return x
    x = x.reshape(b, z, y, w, sz, sy, sx, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, z * sz, y * sy, w * sx, -1)
