"""The 3-D U-Nets, Thin and Thick, compared in Guay et al. (2021), after Cicek et al. (2016)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.ops.pooling import max_pool
from densejax.typing import Array


class UNet3D(nn.Module):
    """Three 3x3x3 convolutions a scale, all padded, with or without pooling in z.

    The base width of 32 is inferred from the published parameter counts; no source states it.
    ``thin()`` and ``thick()`` give the two published settings.

    Attributes:
      classes: number of classes.
      width: of the finest scale; doubled at each coarser one.
      scales: number of scales.
      convs: convolutions a block.
      pool: (z, y, x) of pooling and up-convolution: (1, 2, 2) Thin, (2, 2, 2) Thick. An odd size is
        floored by the pooling and the skip centre-cropped.
      crop: (z, y, x) voxels cut off each side of the logits; (0, 2, 2) is the 300 -> 296 of the
        thesis, which the released Thin network itself does not lose.
      logit_relu: ReLU on the logits, as released.
      norm: of every convolution but the predictors'; the published networks have none.
      dtype: of the computation; parameters and logits are float32.
    """

    classes: int = 7
    width: int = 32
    scales: int = 3
    convs: int = 3
    pool: tuple[int, int, int] = (1, 2, 2)
    crop: tuple[int, int, int] = (0, 0, 0)
    logit_relu: bool = True
    norm: layers.NormKind = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label a window.

        Args:
          x: [b, z, y, x, 1], floating.

        Returns:
          logits, [b, z', y', x', c] float32, and ``out``: 'features' [b, z', y', x', width].
          (z', y', x') is ``output_window((z, y, x))``.

        Raises:
          ValueError: if ``x`` has another rank or channel count, or the window is too small.
        """
        layers.check_input("UNet3D", x)
        window = self.output_window(x.shape[1:4])
        skips = []
        for scale in range(self.scales):
            x = self._block(f"encoder{scale}", scale)(max_pool(x, self.pool) if scale else x)
            skips.append(x)
        for scale in reversed(range(self.scales - 1)):
            width = self.width * 2**scale
            up = layers.UpConv(width, self.pool, dtype=self.dtype, name=f"up{scale}")(x)
            x = self._block(f"decoder{scale}", scale)(layers.join_skip(skips[scale], up))
        x = layers.centre_crop(x, window)
        activation = nn.relu if self.logit_relu else None
        predictor = layers.Conv(
            self.classes, (1, 1, 1), "SAME", activation, self.dtype, name="predictor"
        )
        return predictor(x).astype(jnp.float32), {"features": x}

    def _block(self, name: str, scale: int) -> layers.Block:
        convs = ((self.width * 2**scale, (3, 3, 3)),) * self.convs
        return layers.Block(convs, dtype=self.dtype, norm=self.norm, name=name)

    @nn.nowrap
    def output_window(self, input_window: layers.Sizes) -> layers.Sizes:
        """(z, y, x) of the input -> (z, y, x) of the logits.

        Raises:
          ValueError: if the window is not three sizes, or too small for the pooling and the crop.
        """
        strides = tuple(p ** (self.scales - 1) for p in self.pool)
        # The least multiple of the stride that the crop leaves something of.
        smallest = tuple(s * (2 * c // s + 1) for s, c in zip(strides, self.crop, strict=True))
        window = layers.check_window("UNet3D", input_window, smallest)
        sizes = zip(window, strides, self.crop, strict=True)
        return tuple(n // s * s - 2 * c for n, s, c in sizes)


def thin(**options: Any) -> UNet3D:
    """3D U-Net Thin: pools y and x only. ``options`` are attributes of ``UNet3D``."""
    return UNet3D(**{"pool": (1, 2, 2), **options})


def thick(**options: Any) -> UNet3D:
    """3D U-Net Thick: pools z too. ``options`` are attributes of ``UNet3D``."""
    return UNet3D(**{"pool": (2, 2, 2), **options})
