"""Encoder-decoders of any depth, with as many convolutions in each block as its owner asks for.

What a search over architectures draws from: the networks that GeneNet, the library behind Guay et
al. (2021), builds by default. ``UNet`` with ``padding='SAME'`` is the one with two convolutions in
every block.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.ops.pooling import max_pool
from densejax.typing import Array

FLAT, CUBE = (1, 3, 3), (3, 3, 3)


class EncoderDecoder(nn.Module):
    """Blocks of convolutions, max-pooling by (1, 2, 2), up-convolutions, skips by concatenation.

    A block of scale i has ``width * 2**i`` channels; convolutions are 1x3x3 with zero padding and
    ReLU, so that each z-plane is labelled for itself unless there are ``cubes``. A size that is no
    multiple of ``2**poolings`` is floored on the way down and the skips are centre-cropped.

    Attributes:
      classes: number of classes.
      width: channels of the finest scale.
      encoder: convolutions of each block on the way down, the finest first; one pooling after each.
      bottom: convolutions of the coarsest block.
      decoder: convolutions of each block on the way up, the finest first, as many as ``encoder``.
      cubes: so many of the finest scales lead each of their blocks by one 3x3x3 convolution more,
        of half the width, as the hybrid network does.
      logit_relu: ReLU on the logits, as released.
      dtype: of the computation; parameters and logits are float32.
    """

    classes: int = 7
    width: int = 32
    encoder: tuple[int, ...] = (2, 2, 2)
    bottom: int = 2
    decoder: tuple[int, ...] = (2, 2, 2)
    cubes: int = 0
    logit_relu: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label a window.

        Args:
          x: [b, z, y, x, 1], floating.

        Returns:
          logits, [b, z, y', x', c] float32, and ``out``: 'features' [b, z, y', x', width].
          (z, y', x') is ``output_window((z, y, x))``.

        Raises:
          ValueError: ``x`` has another rank or channel count, the window is smaller than
            ``2**poolings``, or the blocks are not as described.
        """
        layers.check_input("EncoderDecoder", x)
        self.output_window(x.shape[1:4])
        skips = []
        for scale, convs in enumerate(self.encoder):
            x = self._block(f"encoder{scale}", scale, convs)(x)
            skips.append(x)
            x = max_pool(x, (1, 2, 2))
        x = self._block("bottom", len(self.encoder), self.bottom)(x)
        for scale in reversed(range(len(self.decoder))):
            up = layers.UpConv(self.width * 2**scale, dtype=self.dtype, name=f"up{scale}")(x)
            joined = layers.join_skip(skips[scale], up)
            x = self._block(f"decoder{scale}", scale, self.decoder[scale])(joined)
        activation = nn.relu if self.logit_relu else None
        predictor = layers.Conv(
            self.classes, (1, 1, 1), "SAME", activation, self.dtype, name="predictor"
        )
        return predictor(x).astype(jnp.float32), {"features": jnp.asarray(x)}

    def _block(self, name: str, scale: int, convs: int) -> layers.Block:
        width = self.width * 2**scale
        lead = ((max(1, width // 2), CUBE),) if scale < self.cubes else ()
        return layers.Block((*lead, *((width, FLAT),) * convs), dtype=self.dtype, name=name)

    @nn.nowrap
    def output_window(self, input_window: layers.Sizes) -> layers.Sizes:
        """(z, y, x) of the input -> (z, y, x) of the logits.

        Raises:
          ValueError: the window is not three sizes, or too small for the poolings; or encoder and
            decoder differ in length, or a block has no convolution.
        """
        if len(self.encoder) != len(self.decoder) or not self.encoder:
            raise ValueError(
                f"EncoderDecoder: encoder {self.encoder} and decoder {self.decoder}: expected "
                "the same number of blocks, at least one"
            )
        if min(*self.encoder, self.bottom, *self.decoder) < 1:
            raise ValueError(
                f"EncoderDecoder: convolutions {self.encoder}, {self.bottom}, {self.decoder}: "
                "expected at least one in each block"
            )
        unit = 2 ** len(self.encoder)
        z, y, x = layers.check_window("EncoderDecoder", input_window, (1, unit, unit))
        return (z, y // unit * unit, x // unit * unit)
