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


class _Mirror(nn.Module):
    """What SegNet and its basic form share: attributes, dropout, and pooling that is undone."""

    DRAW = "he"

    classes: int = 11
    width: float = 1.0
    drop: float = 0.0
    frozen_norm: bool = False
    dtype: Any = jnp.float32

    def _label(
        self, x: Array, stages: int, train: bool, dropout: bool | None, kernel: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Stages down, each pooled, and up again; the last convolution has the classes."""
        name = type(self).__name__
        planes = layers.as_planes(name, x, self.dtype)
        check_dropout(name, self.drop)
        layers.check_batch(name, planes, train=train and not self.frozen_norm)
        drop = nn.Dropout(self.drop, deterministic=not (train if dropout is None else dropout))
        y, kept = self._prepare(planes), []
        for stage in range(1, stages + 1):
            y = self._down(stage, y, train)
            pooled, places = max_pool_places(y[:, None])
            kept.append((places, (y.shape[1], y.shape[2])))
            y = drop(pooled[:, 0]) if stage >= 3 else pooled[:, 0]
        bottleneck = y
        for stage in range(stages, 0, -1):
            y = self._up(stage, unpool(y[:, None], *kept[stage - 1])[:, 0], train)
            y = drop(y) if stage >= 3 else y
        predictor = layers.Conv2d(
            self.classes, kernel, use_bias=True, dtype=self.dtype, name="predictor"
        )
        logits = predictor(y).astype(jnp.float32)
        out = {"features": layers.as_volumes(y, x), "bottleneck": layers.as_volumes(bottleneck, x)}
        return layers.as_volumes(logits, x), out

    def _conv(self, name: str, channels: int, kernel: int = 3, relu: bool = True) -> ConvNorm2d:
        return ConvNorm2d(
            layers.scaled(channels, self.width),
            kernel,
            use_bias=True,
            relu=relu,
            frozen_norm=self.frozen_norm,
            dtype=self.dtype,
            name=name,
        )

    def _prepare(self, planes: jax.Array) -> jax.Array:
        return planes

    def _down(self, stage: int, y: jax.Array, train: bool) -> jax.Array:
        raise NotImplementedError

    def _up(self, stage: int, y: jax.Array, train: bool) -> jax.Array:
        raise NotImplementedError


class SegNet(_Mirror):
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
        return self._label(x, len(STAGES), train, dropout, 3)

    def _down(self, stage: int, y: jax.Array, train: bool) -> jax.Array:
        channels, count = STAGES[stage - 1]
        for i in range(1, count + 1):
            y = self._conv(f"encoder{stage}_{i}", channels)(y, train=train)
        return y

    def _up(self, stage: int, y: jax.Array, train: bool) -> jax.Array:
        channels, count = STAGES[stage - 1]
        # The first stage's last convolution is the classes' own.
        for i in range(count, 1 if stage == 1 else 0, -1):
            narrow = STAGES[stage - 2][0] if i == 1 else channels
            y = self._conv(f"decoder{stage}_{i}", narrow)(y, train=train)
        return y


class SegNetBasic(_Mirror):
    """SegNet-Basic, four stages of one 7x7 convolution of 64 channels; no ReLU in the decoder.

    1,416,587 parameters with 11 classes. The input is normalised over its channels (local response
    normalisation over 5, alpha 1e-4, beta 0.75, as published). Attributes as of ``SegNet``; with
    ``drop`` behind the last two poolings and the decoder's stages opposite.
    """

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: bool | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label the planes of a window; arguments, results and errors as of ``SegNet``.

        The bottleneck is [b, z, y / 16, x / 16, d].
        """
        return self._label(x, 4, train, dropout, 1)

    def _prepare(self, planes: jax.Array) -> jax.Array:
        return _response_normalised(planes)

    def _down(self, stage: int, y: jax.Array, train: bool) -> jax.Array:
        return self._conv(f"encoder{stage}", 64, 7)(y, train=train)

    def _up(self, stage: int, y: jax.Array, train: bool) -> jax.Array:
        return self._conv(f"decoder{stage}", 64, 7, relu=False)(y, train=train)


def _response_normalised(x: jax.Array) -> jax.Array:
    """x / (1 + 1e-4 / 5 * sum of squares of the five channels around)^0.75, zeros beyond."""
    squares = jnp.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75
