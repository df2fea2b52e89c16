"""Residual networks: torchvision's ResNet-18 and -50, the ResNet-20 of CIFAR and that of SVHN."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models.layers import BatchNorm, Conv2d, Linear, check_pictures
from densejax.models.mlp import check_dropout
from densejax.typing import Array


class ResNet(nn.Module):
    """Residual network (He et al. 2016) with a stem, stages of blocks, mean over space, and a head.

    With batch norm the variables are ``{"params": ..., "batch_stats": ...}``. Training is
    ``apply(variables, x, train=True, mutable=["batch_stats"])``, which returns the new running
    moments beside the result; ``apply(variables, x)`` uses the running moments. From a
    self-supervised checkpoint the thesis trains with the moments frozen: build the network with
    ``frozen_norm=True``, and the same call returns them unchanged, so one training step serves
    both. (scale and bias of the norm are still parameters, as released.)

    Attributes:
      classes: number of classes.
      blocks: residual blocks a stage.
      widths: channels a stage; a bottleneck puts out four times as many.
      bottleneck: blocks of 1x1, 3x3, 1x1 with the stride on the 3x3 (torchvision's "v1.5"), not
        of two 3x3.
      stem: 'imagenet' (7x7 of stride 2 and max-pooling) or 'cifar' (3x3 of stride 1).
      norm: 'batch', or False: no norm, and convolutions have biases.
      frozen_norm: use the running moments even in training.
      shortcut: where the shape changes, 'projection' (1x1 convolution and norm), 'pad' (every
        other pixel, zeros for new channels: option A of He et al.) or 'pool' (the mean of each
        2x2, zeros for new channels).
      pre_activation: norm and activation before each convolution instead of after it, and once
        more before the mean over space (He et al. 2016b). The first block's shortcut starts behind
        its first activation. For blocks of two convolutions and shortcuts without parameters.
      leak: slope of the activation below zero; 0 is the ReLU.
      epsilon: added to the norm's variance.
      dropout: chance that a feature is set to zero before the head while ``train``; needs
        ``rngs={"dropout": key}`` in ``apply``.
      head_std: standard deviation of a normal head with zero bias; None is PyTorch's draw.
      dtype: of the computation; parameters, moments and logits are float32.
    """

    classes: int = 10
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    stem: Literal["imagenet", "cifar"] = "imagenet"
    norm: Literal["batch", False] = "batch"
    frozen_norm: bool = False
    shortcut: Literal["projection", "pad", "pool"] = "projection"
    pre_activation: bool = False
    leak: float = 0.0
    epsilon: float = 1e-5
    dropout: float = 0.0
    head_std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify.

        Args:
          x: [b, y, x, c], floating, standardised.
          train: use the moments of the batch (unless ``frozen_norm``), and drop features.

        Returns:
          logits [b, c] float32, and ``out``: 'layer1', ... [b, y', x', d'], the output of each
          stage, and 'features' [b, d], their mean over space that the head sees.

        Raises:
          ValueError: ``x`` is not [b, y, x, c], or an attribute is none of its values.
        """
        self._check(x)
        stride, kernel = (2, 7) if self.stem == "imagenet" else (1, 3)
        y = self._conv("conv1", self.widths[0], kernel, stride)(x)
        if not self.pre_activation:
            y = _activate(self, _norm(self, "norm1", y, train))
        if self.stem == "imagenet":
            y = nn.max_pool(y, (3, 3), (2, 2), ((1, 1), (1, 1)))
        out: dict[str, jax.Array] = {}
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                y = self._block(width, stride, f"layer{stage}_{i}", shared=stage + i == 1)(
                    y, train=train
                )
            out[f"layer{stage}"] = y
        if self.pre_activation:
            y = _activate(self, _norm(self, "norm_last", y, train))
        out["features"] = y.astype(jnp.float32).mean((1, 2)).astype(self.dtype)
        kept = nn.Dropout(self.dropout, deterministic=not train)(out["features"])
        head = Linear(self.classes, std=self.head_std, dtype=self.dtype, name="head")
        return head(kept).astype(jnp.float32), out

    def _conv(self, name: str, features: int, kernel: int, stride: int) -> Conv2d:
        return Conv2d(features, kernel, stride, use_bias=not self.norm, dtype=self.dtype, name=name)

    def _block(self, width: int, stride: int, name: str, *, shared: bool) -> "Block | PreBlock":
        """A block; ``shared``: the shortcut of a ``PreBlock`` starts behind its activation."""
        same = ("norm", "frozen_norm", "shortcut", "leak", "epsilon", "dtype")
        options = {option: getattr(self, option) for option in same}
        if self.pre_activation:
            return PreBlock(width, stride, shared=shared, name=name, **options)
        return Block(width, stride, bottleneck=self.bottleneck, name=name, **options)

    @nn.nowrap
    def _check(self, x: Array) -> None:
        check_pictures("ResNet", x)
        check_dropout("ResNet", self.dropout)
        allowed = {
            "stem": ("imagenet", "cifar"),
            "norm": ("batch", False),
            "shortcut": ("projection", "pad", "pool"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"ResNet: {name} is {getattr(self, name)!r}; expected one of {values}"
                )
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"ResNet: {self.blocks} blocks for stages of widths {self.widths}")
        if self.pre_activation and (self.bottleneck or self.shortcut == "projection"):
            raise ValueError(
                f"ResNet: pre_activation with bottleneck {self.bottleneck} and shortcut "
                f"{self.shortcut!r}; expected no bottleneck, and 'pad' or 'pool'"
            )


class Block(nn.Module):
    """A residual block, [b, y, x, c] -> [b, y / stride, x / stride, c']; see ``ResNet``.

    With a ``dilation`` the taps of its 3x3 convolutions of stride 1 lie so many pixels apart.
    """

    width: int
    stride: int
    bottleneck: bool
    norm: Literal["batch", False]
    frozen_norm: bool
    shortcut: Literal["projection", "pad", "pool"]
    leak: float
    epsilon: float
    dtype: Any = jnp.float32
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        residual = self._residual(jnp.asarray(x), train)
        return _activate(self, residual + self._skip(jnp.asarray(x), residual.shape[-1], train))

    def _residual(self, x: jax.Array, train: bool) -> jax.Array:
        w, s = self.width, self.stride
        convs = ((w, 1, 1), (w, 3, s), (4 * w, 1, 1)) if self.bottleneck else ((w, 3, s), (w, 3, 1))
        y = x
        for i, (features, kernel, stride) in enumerate(convs, 1):
            y = _activate(self, y) if i > 1 else y
            y = self._conv(f"conv{i}", features, kernel, stride)(y)
            y = _norm(self, f"norm{i}", y, train)
        return y

    def _skip(self, x: jax.Array, features: int, train: bool) -> jax.Array:
        if self.stride == 1 and x.shape[-1] == features:
            return x
        if self.shortcut == "projection":
            x = self._conv("shortcut_conv", features, 1, self.stride)(x)
            return _norm(self, "shortcut_norm", x, train)
        return _padded(x, features, self.stride, mean=self.shortcut == "pool")

    def _conv(self, name: str, features: int, kernel: int, stride: int) -> Conv2d:
        options: dict[str, Any] = {"use_bias": not self.norm, "dtype": self.dtype, "name": name}
        dilation = self.dilation if kernel > 1 and stride == 1 else 1
        return Conv2d(features, kernel, stride, dilation=dilation, **options)


class PreBlock(nn.Module):
    """A block whose norms and activations come before its two 3x3 convolutions; see ``ResNet``."""

    width: int
    stride: int
    shared: bool
    norm: Literal["batch", False]
    frozen_norm: bool
    shortcut: Literal["projection", "pad", "pool"]
    leak: float
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> jax.Array:
        x = jnp.asarray(x)
        y = _activate(self, _norm(self, "norm1", x, train))
        skip = y if self.shared else x
        options: dict[str, Any] = {"use_bias": not self.norm, "dtype": self.dtype}
        y = Conv2d(self.width, 3, self.stride, name="conv1", **options)(y)
        y = _activate(self, _norm(self, "norm2", y, train))
        y = Conv2d(self.width, 3, name="conv2", **options)(y)
        return y + _padded(skip, self.width, self.stride, mean=self.shortcut == "pool")


def _padded(x: jax.Array, features: int, stride: int, *, mean: bool) -> jax.Array:
    """The shortcut without parameters: fewer pixels, and zeros on both sides of the channels."""
    if stride > 1 and mean:
        b, rows, columns, c = x.shape
        y, z = rows // stride, columns // stride
        x = x[:, : y * stride, : z * stride].reshape(b, y, stride, z, stride, c).mean((2, 4))
    else:
        x = x[:, ::stride, ::stride]
    more = features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))


def _activate(module: ResNet | Block | PreBlock, x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, module.leak) if module.leak else nn.relu(x)


def _norm(module: ResNet | Block | PreBlock, name: str, x: jax.Array, train: bool) -> jax.Array:
    """Normalise inside ``module``, or not."""
    if not module.norm:
        return x
    layer = BatchNorm(
        module.frozen_norm, epsilon=module.epsilon, dtype=module.dtype, parent=module, name=name
    )
    return layer(x, train=train)


def resnet18(classes: int, **options: Any) -> ResNet:
    """ResNet-18: 11.7 million parameters with 1000 classes. ``options`` as ``ResNet``."""
    return ResNet(classes, **options)


def resnet50(classes: int, **options: Any) -> ResNet:
    """ResNet-50: 25.6 million parameters with 1000 classes. ``options`` as ``ResNet``."""
    deep: dict[str, Any] = {"blocks": (3, 4, 6, 3), "bottleneck": True}
    return ResNet(classes, **(deep | options))


def resnet20(classes: int, **options: Any) -> ResNet:
    """ResNet-20 for 32-pixel pictures: 0.27 million parameters. ``options`` as ``ResNet``.

    Source: He et al. 2016, section 4.2: three stages of 16, 32, 64 channels, shortcuts without
    parameters.
    """
    cifar: dict[str, Any] = {"blocks": (3, 3, 3), "widths": (16, 32, 64)}
    cifar |= {"stem": "cifar", "shortcut": "pad"}
    return ResNet(classes, **(cifar | options))


def svhn_resnet20(classes: int, **options: Any) -> ResNet:
    """The pre-activation ResNet-20 of the thesis on SVHN: 269,722 parameters with 10 classes.

    Source: the thesis, section 3.4, which calls it ResNet-18; its code has three blocks in each of
    three stages, a leaky ReLU of slope 0.1, 1e-3 in the norm, and shortcuts by mean and padding.
    Departures: that code pads a stride of 2 on one side only (here alike on both), keeps the
    biased variance among the running moments, and draws the head Glorot-uniform.

    Args:
      classes: number of classes.
      options: attributes of ``ResNet``.
    """
    published: dict[str, Any] = {"pre_activation": True, "leak": 0.1, "epsilon": 1e-3}
    return resnet20(classes, **(published | {"shortcut": "pool"} | options))
