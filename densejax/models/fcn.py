"""FCN-8s: VGG16 made convolutional, with the scores of three depths added up."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.models.mlp import check_dropout
from densejax.models.segnet import STAGES
from densejax.ops.pooling import max_pool_places
from densejax.typing import Array


class FCN8s(nn.Module):
    """FCN-8s (Long et al. 2015, arXiv 1411.4038) over the planes of a volume.

    VGG16, its fully connected layers as convolutions of 7x7 and 1x1, and the scores of the third
    and fourth pooling added to theirs. 134,314,081 parameters with 11 classes; the published 34,848
    weights of fixed bilinear kernels are no parameters here. Departures: the published network pads
    its input by 100 pixels and crops; here the 7x7 convolution pads by 3, so that sizes stay. And
    scores are enlarged bilinearly between the centres of pixels, which differs from the kernels at
    the edges only.

    Attributes:
      classes: number of classes.
      width: a factor on all channels.
      drop: chance that a number is set to zero behind the two layers of 4096, in training or where
        a call asks for it (published: 0.5).
      dtype: of the computation; parameters and logits are float32.
    """

    DRAW = "he"

    classes: int = 11
    width: float = 1.0
    drop: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: bool | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label the planes of a window.

        Args:
          x: [b, z, y, x, c], floating.
          train: drop numbers; nothing else changes.
          dropout: in place of ``train``, where it is not None; needs ``rngs={"dropout": key}``.

        Returns:
          logits, [b, z, y, x, c] float32, and ``out``: 'features' and 'bottleneck', both
          [b, z, y / 32, x / 32, d], what the last layer's scores see; odd sizes are rounded up.

        Raises:
          ValueError: ``x`` has another rank.
        """
        y = planes = layers.as_planes("FCN8s", x, self.dtype)
        check_dropout("FCN8s", self.drop)
        active = train if dropout is None else dropout
        drop = nn.Dropout(self.drop, deterministic=not active)
        pooled = []
        for stage, (channels, count) in enumerate(STAGES, 1):
            for i in range(1, count + 1):
                y = nn.relu(self._conv(f"conv{stage}_{i}", channels, 3)(y))
            y = max_pool_places(y[:, None])[0][:, 0]
            pooled.append(y)
        for name, kernel in (("fc6", 7), ("fc7", 1)):
            y = drop(nn.relu(self._conv(name, 4096, kernel)(y)))
        bottleneck = y
        logits = self._scores("score", y)
        for name, level in (("score_pool4", pooled[3]), ("score_pool3", pooled[2])):
            logits = self._scores(name, level) + _enlarged(logits, 2, level)
        logits = _enlarged(logits, 8, planes)
        deep = layers.as_volumes(bottleneck, x)
        return layers.as_volumes(logits, x), {"features": deep, "bottleneck": deep}

    def _conv(self, name: str, channels: int, kernel: int) -> layers.Conv2d:
        features = layers.scaled(channels, self.width)
        return layers.Conv2d(features, kernel, use_bias=True, dtype=self.dtype, name=name)

    def _scores(self, name: str, y: jax.Array) -> jax.Array:
        conv = layers.Conv2d(self.classes, 1, use_bias=True, dtype=self.dtype, name=name)
        return conv(y).astype(jnp.float32)


def _enlarged(scores: jax.Array, factor: int, like: jax.Array) -> jax.Array:
    """Enlarge by a whole factor and cut the end off, where poolings rounded sizes up."""
    b, rows, columns, c = scores.shape
    whole = jax.image.resize(scores, (b, factor * rows, factor * columns, c), "linear")
    return whole[:, : like.shape[1], : like.shape[2]]
