"""DeepLab v3+: a dilated backbone, pooling at several rates, a decoder of stride 4."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.models.layers import ConvNorm2d
from densejax.models.mlp import check_dropout
from densejax.models.resnet import Block
from densejax.ops.resize import resize_aligned
from densejax.typing import Array

OUTPUT_STRIDE = 16


class ResNetBeta(nn.Module):
    """TensorFlow's ``resnet_v1_50_beta`` at output stride 16, as the backbone of ``DeepLab``.

    Three 3x3 convolutions (64, 64, 128) in place of the 7x7, 3x3 maxima of stride 2, and
    bottlenecks whose stride of 2 is in the last of a stage. The third stage keeps its size, and the
    fourth has dilation 2 instead. Where the published pooling pads an even size at its end only,
    both ends are padded here, as for odd sizes, which the published pictures have.

    Attributes:
      width: a factor on all channels.
      frozen_norm: use the running moments even in training.
      blocks: bottlenecks a stage.
      dtype: of the computation.
    """

    width: float = 1.0
    frozen_norm: bool = False
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """[b, y, x, c] -> [b, y / 4, x / 4, 256] for the decoder, and [b, y / 16, x / 16, 2048].

        The first is what the last bottleneck of stride 4 adds to its input.
        """
        y = jnp.asarray(x, self.dtype)
        for i, (channels, stride) in enumerate(((64, 2), (64, 1), (128, 1)), 1):
            features = layers.scaled(channels, self.width)
            conv = ConvNorm2d(
                features,
                stride=stride,
                frozen_norm=self.frozen_norm,
                dtype=self.dtype,
                name=f"root{i}",
            )
            y = conv(y, train=train)
        y = nn.max_pool(y, (3, 3), (2, 2), ((1, 1), (1, 1)))
        low = y
        for stage, count in enumerate(self.blocks, 1):
            for i in range(count):
                block = _Unit(
                    layers.scaled(64 * 2 ** (stage - 1), self.width),
                    stride=2 if stage < 3 and i == count - 1 else 1,
                    dilation=2 if stage == 4 else 1,
                    bottleneck=True,
                    norm="batch",
                    frozen_norm=self.frozen_norm,
                    shortcut="projection",
                    leak=0.0,
                    epsilon=1e-5,
                    dtype=self.dtype,
                    name=f"layer{stage}_{i}",
                )
                y, residual = block(y, train=train)
                low = residual if (stage, i) == (1, count - 2) else low
        return low, y


class _Unit(Block):
    """A bottleneck that keeps every other pixel of a shortcut without new channels.

    Returns what the block returns, and what it added to its input.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:  # type: ignore[override]
        x = jnp.asarray(x)
        residual = self._residual(x, train)
        if x.shape[-1] == residual.shape[-1]:
            skip = x[:, :: self.stride, :: self.stride]
        else:
            skip = self._skip(x, residual.shape[-1], train)
        return nn.relu(residual + skip), residual


class DeepLab(nn.Module):
    """DeepLab v3+ (Chen et al. 2018, arXiv 1802.02611) over the planes of a volume.

    As Chen (2020) has it: ``resnet_v1_50_beta``, no separable convolutions, 40,475,443 parameters
    with 19 classes. Pooling at several rates is a 1x1 convolution, three dilated ones and the mean
    of the picture; the decoder joins it with the backbone's features of stride 4. All convolutions
    but the last have batch norm, so that a training step needs two planes or more: the mean of one
    picture has no variance. Variables are ``{"params": ..., "batch_stats": ...}``, used as in
    ``ResNet``.

    Attributes:
      classes: number of classes.
      width: a factor on all channels.
      drop: chance that a number is set to zero behind the pooling, in training or where a call asks
        for it (published: 0.1; 0.5 for passes of Monte-Carlo dropout).
      frozen_norm: use the running moments even in training.
      rates: dilations of the pooling.
      backbone: module called with ``width``, ``frozen_norm``, ``dtype`` and ``name`` that returns
        features for the decoder and for the pooling.
      dtype: of the computation; parameters, moments and logits are float32.
    """

    DRAW = "he"

    classes: int = 19
    width: float = 1.0
    drop: float = 0.1
    frozen_norm: bool = False
    rates: tuple[int, ...] = (6, 12, 18)
    backbone: Callable[..., Any] = ResNetBeta
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
          logits, [b, z, y, x, c] float32, and ``out``: 'features' [b, z, y / 4, x / 4, d], what the
          last 1x1 convolution sees, and 'bottleneck' [b, z, y / 16, x / 16, d], the pooling's.

        Raises:
          ValueError: ``x`` has another rank or is smaller than the output stride, or a step of
            training has one plane only.
        """
        planes = layers.as_planes("DeepLab", x, self.dtype)
        check_dropout("DeepLab", self.drop)
        self.output_window(x.shape[1:4])
        layers.check_batch("DeepLab", planes, train=train and not self.frozen_norm)
        options = {"width": self.width, "frozen_norm": self.frozen_norm, "dtype": self.dtype}
        low, high = self.backbone(**options, name="backbone")(planes, train=train)
        pooled = self._conv("pooled", 256, 1)(high.mean((1, 2), keepdims=True), train=train)
        branches = [jnp.broadcast_to(pooled, (*high.shape[:3], pooled.shape[-1]))]
        branches += [self._conv("rate1", 256, 1)(high, train=train)]
        for rate in self.rates:
            branches += [self._conv(f"rate{rate}", 256, 3, rate)(high, train=train)]
        bottleneck = self._conv("project", 256, 1)(jnp.concatenate(branches, -1), train=train)
        active = train if dropout is None else dropout
        y = nn.Dropout(self.drop, deterministic=not active)(bottleneck)
        y = resize_aligned(y[:, None], (low.shape[1], low.shape[2]))[:, 0]
        y = jnp.concatenate([y, self._conv("low", 48, 1)(low, train=train)], -1)
        for i in range(2):
            y = self._conv(f"decoder{i}", 256, 3)(y, train=train)
        predictor = layers.Conv2d(
            self.classes, 1, use_bias=True, dtype=self.dtype, name="predictor"
        )
        logits = resize_aligned(
            predictor(y).astype(jnp.float32)[:, None], (planes.shape[1], planes.shape[2])
        )
        out = {"features": layers.as_volumes(y, x), "bottleneck": layers.as_volumes(bottleneck, x)}
        return layers.as_volumes(logits[:, 0], x), out

    def _conv(self, name: str, channels: int, kernel: int, dilation: int = 1) -> ConvNorm2d:
        return ConvNorm2d(
            layers.scaled(channels, self.width),
            kernel,
            dilation=dilation,
            frozen_norm=self.frozen_norm,
            dtype=self.dtype,
            name=name,
        )

    @nn.nowrap
    def output_window(self, input_window: layers.Sizes) -> layers.Sizes:
        """(z, y, x) of the input -> (z, y, x) of the logits: the same. Raises: as the call."""
        smallest = (1, OUTPUT_STRIDE, OUTPUT_STRIDE)
        return layers.check_window("DeepLab", input_window, smallest)
