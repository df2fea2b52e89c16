"""SegNet: VGG16 mirrored, with unpooling to where the maxima were; its Bayesian and basic forms."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.models.layers import ConvNorm2d
from densejax.models.mlp import check_dropout
from densejax.ops.pooling import max_pool_places, unpool
from densejax.typing import Array

# Channels of the stages of VGG16, and how many convolutions each has.
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class SegNet(nn.Module):
    """SegNet (Badrinarayanan et al. 2017, arXiv 1511.00561) over the planes of a volume.

    13 convolutions as in VGG16, each with batch norm and ReLU, and their mirror; every pooling
    remembers where its maxima were, and unpooling puts numbers back there. 29,449,355 parameters
    with 11 classes. With ``drop`` it is Bayesian SegNet (Kendall et al. 2017, arXiv 1511.02680):
    dropout behind the last three poolings and the decoder's stages opposite. Variables are
    ``{"params": ..., "batch_stats": ...}``, used as in ``ResNet``.

    Attributes:
      classes: number of classes.
      width: a factor on all channels.
      drop: chance that a number is set to zero, in training or where a call asks for it (published:
        0.5); 0 is SegNet itself.
      frozen_norm: use the running moments even in training.
      dtype: of the computation; parameters, moments and logits are float32.
    """

    DRAW = "he"

    classes: int = 11
    width: float = 1.0
    drop: float = 0.0
    frozen_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: bool | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label the planes of a window.

        Args:
          x: [b, z, y, x, c], floating.
          train: use the moments of the batch (unless ``frozen_norm``), and drop numbers.
          dropout: drop numbers or not, in place of ``train``, where it is not None; needs
            ``rngs={"dropout": key}`` in ``apply``.

        Returns:
          logits, [b, z, y, x, c] float32, and ``out``: 'features' [b, z, y, x, d], what the last
          convolution sees, and 'bottleneck' [b, z, y / 32, x / 32, d]; odd sizes are rounded up.

        Raises:
          ValueError: ``x`` has another rank, or a step of training has one plane only.
        """
        planes = layers.as_planes("SegNet", x, self.dtype)
        check_dropout("SegNet", self.drop)
        layers.check_batch("SegNet", planes, train=train and not self.frozen_norm)
        active = train if dropout is None else dropout
        drop = nn.Dropout(self.drop, deterministic=not active)
        y, places, sizes = planes, [], []
        for stage, (channels, count) in enumerate(STAGES, 1):
            for i in range(1, count + 1):
                y = self._conv(f"encoder{stage}_{i}", channels)(y, train=train)
            sizes.append((y.shape[1], y.shape[2]))
            pooled, at = max_pool_places(y[:, None])
            y = drop(pooled[:, 0]) if stage >= 3 else pooled[:, 0]
            places.append(at)
        bottleneck = y
        for stage in range(len(STAGES), 0, -1):
            channels, count = STAGES[stage - 1]
            y = unpool(y[:, None], places[stage - 1], sizes[stage - 1])[:, 0]
            for i in range(count, 0, -1):
                if stage == i == 1:
                    break  # the classes' own convolution, below
                narrow = STAGES[stage - 2][0] if i == 1 else channels
                y = self._conv(f"decoder{stage}_{i}", narrow)(y, train=train)
            y = drop(y) if stage >= 3 else y
        predictor = layers.Conv2d(
            self.classes, 3, use_bias=True, dtype=self.dtype, name="predictor"
        )
        logits = predictor(y).astype(jnp.float32)
        out = {"features": layers.as_volumes(y, x), "bottleneck": layers.as_volumes(bottleneck, x)}
        return layers.as_volumes(logits, x), out

    def _conv(self, name: str, channels: int) -> ConvNorm2d:
        features = layers.scaled(channels, self.width)
        options = {"frozen_norm": self.frozen_norm, "dtype": self.dtype}
        return ConvNorm2d(features, use_bias=True, name=name, **options)


class SegNetBasic(nn.Module):
    """SegNet-Basic, four stages of one 7x7 convolution of 64 channels; no ReLU in the decoder.

    1,416,587 parameters with 11 classes. The input is normalised over its channels (local response
    normalisation over 5, alpha 1e-4, beta 0.75, as published).

    Attributes:
      classes: number of classes.
      width: a factor on all channels.
      drop: as of ``SegNet``: behind the last two poolings and the decoder's stages opposite.
      frozen_norm: use the running moments even in training.
      dtype: of the computation; parameters, moments and logits are float32.
    """

    DRAW = "he"

    classes: int = 11
    width: float = 1.0
    drop: float = 0.0
    frozen_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: bool | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label the planes of a window; arguments, results and errors as of ``SegNet``.

        The bottleneck is [b, z, y / 16, x / 16, d].
        """
        planes = layers.as_planes("SegNetBasic", x, self.dtype)
        check_dropout("SegNetBasic", self.drop)
        layers.check_batch("SegNetBasic", planes, train=train and not self.frozen_norm)
        active = train if dropout is None else dropout
        drop = nn.Dropout(self.drop, deterministic=not active)
        features = layers.scaled(64, self.width)
        options = {"frozen_norm": self.frozen_norm, "dtype": self.dtype, "use_bias": True}
        y, places, sizes = _response_normalised(planes), [], []
        for stage in range(1, 5):
            y = ConvNorm2d(features, 7, name=f"encoder{stage}", **options)(y, train=train)
            sizes.append((y.shape[1], y.shape[2]))
            pooled, at = max_pool_places(y[:, None])
            y = drop(pooled[:, 0]) if stage >= 3 else pooled[:, 0]
            places.append(at)
        bottleneck = y
        for stage in range(4, 0, -1):
            y = unpool(y[:, None], places[stage - 1], sizes[stage - 1])[:, 0]
            conv = ConvNorm2d(features, 7, relu=False, name=f"decoder{stage}", **options)
            y = conv(y, train=train)
            y = drop(y) if stage >= 3 else y
        predictor = layers.Conv2d(
            self.classes, 1, use_bias=True, dtype=self.dtype, name="predictor"
        )
        logits = predictor(y).astype(jnp.float32)
        out = {"features": layers.as_volumes(y, x), "bottleneck": layers.as_volumes(bottleneck, x)}
        return layers.as_volumes(logits, x), out


def _response_normalised(x: jax.Array) -> jax.Array:
    """x / (1 + 1e-4 / 5 * sum of squares of the five channels around)^0.75, zeros beyond."""
    squares = jnp.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75
