"""The original 2-D U-Net of Ronneberger et al. (2015), over the planes of a volume."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.ops.pooling import max_pool
from densejax.typing import Array


class UNet(nn.Module):
    """Two 3x3 convolutions a scale, max-pooling by 2, 2x2 up-convolutions, skips by concatenation.

    Each z-plane is labelled for itself. Source: arXiv 1505.04597, with the released comparison of
    Guay et al. (2021): 1 channel in, Glorot-uniform kernels, no dropout, ReLU on the logits.

    Attributes:
      classes: number of classes.
      width: of the finest scale; doubled at each coarser one.
      scales: number of scales.
      padding: 'VALID' as published (572 -> 388), or 'SAME', which takes small windows. An odd size
        is floored by the pooling and the skip centre-cropped.
      logit_relu: ReLU on the logits, as released.
      norm: of every convolution but the predictors'; the published networks have none.
      dtype: of the computation; parameters and logits are float32.
    """

    classes: int = 7
    width: int = 64
    scales: int = 5
    padding: str = "VALID"
    logit_relu: bool = True
    norm: layers.NormKind = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label the planes of a window.

        Args:
          x: [b, z, y, x, 1], floating.

        Returns:
          logits, [b, z, y', x', c] float32, and ``out``: 'features' [b, z, y', x', width].
          (z, y', x') is ``output_window((z, y, x))``.

        Raises:
          ValueError: if ``x`` has another rank or channel count, or the window is too small.
        """
        layers.check_input("UNet", x)
        self.output_window(x.shape[1:4])
        skips = []
        for scale in range(self.scales):
            x = self._block(f"encoder{scale}", scale)(max_pool(x, (1, 2, 2)) if scale else x)
            skips.append(x)
        for scale in reversed(range(self.scales - 1)):
            up = layers.UpConv(self.width * 2**scale, dtype=self.dtype, name=f"up{scale}")(x)
            x = self._block(f"decoder{scale}", scale)(layers.join_skip(skips[scale], up))
        activation = nn.relu if self.logit_relu else None
        predictor = layers.Conv(
            self.classes, (1, 1, 1), "SAME", activation, self.dtype, name="predictor"
        )
        return predictor(x).astype(jnp.float32), {"features": jnp.asarray(x)}

    def _block(self, name: str, scale: int) -> layers.Block:
        convs = ((self.width * 2**scale, (1, 3, 3)),) * 2
        return layers.Block(convs, self.padding, self.dtype, self.norm, True, name=name)

    @nn.nowrap
    def output_window(self, input_window: layers.Sizes) -> layers.Sizes:
        """(z, y, x) of the input -> (z, y, x) of the logits.

        Raises:
          ValueError: if the window is not three sizes, or too small for the scales.
        """
        z, y, x = layers.check_window("UNet", input_window, (1, 1, 1))
        lost = 4 if self.padding == "VALID" else 0
        sizes = tuple(_along(n, self.scales, lost) for n in (y, x))
        if min(sizes) < 1:
            expected = f"larger y and x for {self.scales} scales of {self.padding} convolutions"
            raise layers.invalid_window("UNet", input_window, expected)
        return (z, *sizes)


def _along(n: int, scales: int, lost: int) -> int:
    """Size after the network along one axis, ``lost`` voxels a block; below 1 if it vanishes."""
    skips = []
    for scale in range(scales):
        n = (n // 2 if scale else n) - lost
        if n < 1:
            return 0
        skips.append(n)
    for skip in reversed(skips[:-1]):
        n = min(2 * n, skip) - lost
        if n < 1:
            return 0
    return n
