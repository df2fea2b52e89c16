"""The original 2-D U-Net of Ronneberger et al. (2015), over the planes of a volume."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.models.mlp import check_dropout
from densejax.ops.pooling import max_pool
from densejax.typing import Array


class UNet(nn.Module):
    """Two 3x3 convolutions a scale, max-pooling by 2, 2x2 up-convolutions, skips by concatenation.

    Each z-plane is labelled for itself. Source: arXiv 1505.04597, with the released comparison of
    Guay et al. (2021): 1 channel in, Glorot-uniform kernels, no dropout, ReLU on the logits. Roels
    and Saeys (2019) have width 16, two classes and same padding: 1,940,834 parameters; where their
    dropout sits is not said, and ``drop`` has it where Bayesian SegNet has it.

    Attributes:
      classes: number of classes.
      width: of the finest scale; doubled at each coarser one.
      scales: number of scales.
      padding: 'VALID' as published (572 -> 388), or 'SAME', which takes small windows. An odd size
        is floored by the pooling and the skip centre-cropped.
      logit_relu: ReLU on the logits, as released.
      norm: of every convolution but the predictors'; the published networks have none.
      channels: of the input.
      drop: chance that a number is set to zero behind the two deepest blocks of the encoder and
        those of the decoder opposite, in training or where a call asks for it.
      dtype: of the computation; parameters and logits are float32.
    """

    classes: int = 7
    width: int = 64
    scales: int = 5
    padding: str = "VALID"
    logit_relu: bool = True
    norm: layers.NormKind = "none"
    channels: int = 1
    drop: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: bool | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label the planes of a window.

        Args:
          x: [b, z, y, x, channels], floating.
          train: drop numbers, by ``rngs={"dropout": key}`` in ``apply``; nothing else changes.
          dropout: in place of ``train``, where it is not None.

        Returns:
          logits, [b, z, y', x', c] float32, and ``out``: 'features' [b, z, y', x', width], and
          'bottleneck' [b, z, y'', x'', d], the coarsest. (z, y', x') is
          ``output_window((z, y, x))``.

        Raises:
          ValueError: if ``x`` has another rank or channel count, or the window is too small.
        """
        layers.check_input("UNet", x, channels=self.channels)
        check_dropout("UNet", self.drop)
        self.output_window(x.shape[1:4])
        drop = nn.Dropout(self.drop, deterministic=not (train if dropout is None else dropout))
        skips = []
        for scale in range(self.scales):
            x = self._block(f"encoder{scale}", scale)(max_pool(x, (1, 2, 2)) if scale else x)
            x = drop(x) if scale >= self.scales - 2 else x
            skips.append(x)
        bottleneck = jnp.asarray(x)
        for scale in reversed(range(self.scales - 1)):
            up = layers.UpConv(self.width * 2**scale, dtype=self.dtype, name=f"up{scale}")(x)
            x = self._block(f"decoder{scale}", scale)(layers.join_skip(skips[scale], up))
            x = drop(x) if scale >= self.scales - 3 else x
        activation = nn.relu if self.logit_relu else None
        predictor = layers.Conv(
            self.classes, (1, 1, 1), "SAME", activation, self.dtype, name="predictor"
        )
        out = {"features": jnp.asarray(x), "bottleneck": bottleneck}
        return predictor(x).astype(jnp.float32), out

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
