"""VGG networks for pictures of 32 pixels and more, with batch norm and without."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models.layers import HE_FAN_OUT, LECUN_UNIFORM, BatchNorm, check_pictures
from densejax.ops.convolution import convolution
from densejax.ops.pooling import max_pool
from densejax.typing import Array, Params

Layer = Callable[[Params, Array], jax.Array]
"""A layer as a function that is linear in ``{"kernel": ..., "bias": ...}``: (params, x) -> z."""

CONVOLUTIONS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Convolutions a stage (Simonyan and Zisserman 2015, table 1, columns A, B, D and E)."""


class VGG(nn.Module):
    """Stages of 3x3 convolutions and 2x2 maxima, mean over what is left of space, and one head.

    The layout is that of the networks of CIFAR that the thesis took over (kuangliu/pytorch-cifar):
    torchvision's stages, convolutions with biases although a norm follows, and a single linear
    layer in place of three. With batch norm the variables are ``{"params": ..., "batch_stats":
    ...}``, used as in ``ResNet``.

    Attributes:
      classes: number of classes.
      convolutions: 3x3 convolutions a stage; see ``CONVOLUTIONS``.
      widths: channels a stage.
      norm: 'batch' between each convolution and its ReLU, or False.
      frozen_norm: use the running moments even in training.
      draw: of the convolutions, 'torch' (kernels uniform in +-1 / sqrt(fan in), PyTorch's default
        and so the published draw; biases zero here) or 'he' (normal of fan out, biases zero,
        torchvision's). Without a norm the signal of the first dies out in deep networks.
      wrap: what becomes of each layer, convolutions and head: another function with the layer's
        values, such as ``optimisers.proximal.proximal``, which has another gradient.
      dtype: of the computation; parameters, moments and logits are float32.
    """

    classes: int = 10
    convolutions: tuple[int, ...] = (2, 2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: Literal["batch", False] = "batch"
    frozen_norm: bool = False
    draw: Literal["torch", "he"] = "torch"
    wrap: Callable[[Layer], Layer] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify.

        Args:
          x: [b, y, x, c], floating, standardised; y and x at least 2 ** stages.
          train: use the moments of the batch (unless ``frozen_norm``).

        Returns:
          logits [b, c] float32, and ``out``: 'stage1', ... [b, y', x', d'], the output of each
          stage, and 'features' [b, d], what the head sees.

        Raises:
          ValueError: ``x`` is not [b, y, x, c] or too small, or an attribute is none of its values.
        """
        self._check(x)
        initialiser = LECUN_UNIFORM if self.draw == "torch" else HE_FAN_OUT
        y, out = jnp.asarray(x, self.dtype), {}
        for stage, (count, width) in enumerate(zip(self.convolutions, self.widths, strict=True), 1):
            for i in range(count):
                name = f"conv{stage}_{i}"
                y = LinearMap(width, 3, initialiser, self.wrap, self.dtype, name=name)(y)
                if self.norm:
                    norm = BatchNorm(self.frozen_norm, dtype=self.dtype, name=f"norm{stage}_{i}")
                    y = norm(y, train=train)
                y = nn.relu(y)
            y = max_pool(y[:, None], (1, 2, 2))[:, 0]
            out[f"stage{stage}"] = y
        out["features"] = y.astype(jnp.float32).mean((1, 2)).astype(self.dtype)
        head = LinearMap(self.classes, 0, LECUN_UNIFORM, self.wrap, self.dtype, name="head")
        return head(out["features"]).astype(jnp.float32), out

    @nn.nowrap
    def _check(self, x: Array) -> None:
        check_pictures("VGG", x)
        for name, values in (("norm", ("batch", False)), ("draw", ("torch", "he"))):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"VGG: {name} is {getattr(self, name)!r}; expected one of {values}"
                )
        stages = len(self.convolutions)
        if stages != len(self.widths):
            raise ValueError(f"VGG: {self.convolutions} convolutions for widths {self.widths}")
        if min(x.shape[1:3]) < 2**stages:
            raise ValueError(
                f"VGG: pictures of {x.shape[1]} x {x.shape[2]} pixels; {stages} poolings need "
                f"{2**stages} or more"
            )


class LinearMap(nn.Module):
    """A convolution of stride 1 with zeros at its border, or (kernel 0) a product; with a bias.

    [b, y, x, c] -> [b, y, x, features], or [b, d] -> [b, features]. Parameters 'kernel' [kernel,
    kernel, c, features] or [d, features] and 'bias' [features], float32.
    """

    features: int
    kernel: int
    initialiser: Any
    wrap: Callable[[Layer], Layer] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        shape = (*(self.kernel,) * (2 if self.kernel else 0), x.shape[-1], self.features)
        params = {
            "kernel": self.param("kernel", self.initialiser, shape, jnp.float32),
            "bias": self.param("bias", nn.initializers.zeros_init(), shape[-1:], jnp.float32),
        }
        layer = convolve if self.kernel else multiply
        x = jnp.asarray(x, self.dtype)
        return (self.wrap(layer) if self.wrap else layer)(params, x)


def convolve(params: Params, x: Array) -> jax.Array:
    """A convolution with bias, of stride 1 and the size of ``x`` [b, y, x, c]; see ``Layer``."""
    kernel = jnp.asarray(params["kernel"], x.dtype)
    return convolution(x[:, None], kernel[None])[:, 0] + jnp.asarray(params["bias"], x.dtype)


def multiply(params: Params, x: Array) -> jax.Array:
    """``x`` [b, d] times the kernel [d, features], plus the bias; see ``Layer``."""
    return jnp.asarray(x) @ jnp.asarray(params["kernel"], x.dtype) + params["bias"].astype(x.dtype)


def vgg(name: str, classes: int, *, width: int = 64, **options: Any) -> VGG:
    """A VGG by its name: with 10 classes and width 64, VGG13 has 9,416,010 parameters.

    Args:
      name: of ``CONVOLUTIONS``.
      classes: number of classes.
      width: channels of the first stage (published: 64); the others are 2, 4, 8 and 8 times it.
      options: further attributes of ``VGG``.

    Raises:
      ValueError: the name is unknown.
    """
    if name not in CONVOLUTIONS:
        raise ValueError(f"VGG {name!r}: expected one of {', '.join(CONVOLUTIONS)}")
    widths = tuple(width * multiple for multiple in (1, 2, 4, 8, 8))
    return VGG(classes, CONVOLUTIONS[name], widths, **options)
