"""The hybrid 2D-3D network of Guay et al. (2021): a 2-D U-Net, then a small 3-D pyramid.

An encoder-decoder of 1x3x3 convolutions, with one 3x3x3 convolution ahead of each block of the two
finer scales, labels the window once; its features and logits then feed a two-scale pyramid of 3x3x3
convolutions, which labels it again. Source: doi 10.1038/s41598-021-81590-0.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models import layers
from densejax.ops.pooling import max_pool
from densejax.typing import Array

Group = Literal["2d", "3d", "head"]

FLAT = (1, 3, 3)
CUBE = (3, 3, 3)
POINT = (1, 1, 1)
SCALES = 3


class Hybrid2D3D(nn.Module):
    """The hybrid 2D-3D network and its ablations.

    The published "No Multi-Loss" is this same network, trained with the weight of the loss of
    ``logits_2d`` at zero. Any window of y, x >= 8 is taken; a size that is no multiple of 8 is
    floored on the way down, and each skip is centre-cropped to what comes up (300 -> 296).

    Attributes:
      classes: number of classes.
      width: base width; 32 is the published network, 8 a quarter of every width.
      conv3d_in_2d: lead each block of scales 0 and 1 by a 3x3x3 convolution; False is the published
        "No 3x3x3 Convs": the same widths, 1x3x3.
      pyramid: refine by the 3-D pyramid; False is "No 3D Pyramid": the logits are ``logits_2d``.
      logit_relu: ReLU on the logits, as released (and as the thesis can be read).
      upsample_z: as released in TensorFlow, the merge upsamples z too (2x2x2) and the result is
        centre-cropped in z; False is (1, 2, 2), as the pooling.
      norm: of every convolution but the predictors'; the published networks have none.
      dtype: of the computation; parameters and logits are float32.
    """

    classes: int = 7
    width: int = 32
    conv3d_in_2d: bool = True
    pyramid: bool = True
    logit_relu: bool = True
    upsample_z: bool = False
    norm: layers.NormKind = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Label a window.

        Args:
          x: [b, z, y, x, 1], floating, mean 0 and standard deviation 1 over its volume.

        Returns:
          logits, [b, z, y', x', c] float32, and ``out``: 'logits_2d' [b, z, y', x', c] float32,
          'features' [b, z, y', x', 2 * width], what the last predictor saw.
          (z, y', x') is ``output_window((z, y, x))``.

        Raises:
          ValueError: if ``x`` has another rank or channel count, or y or x is below 8.
        """
        layers.check_input("Hybrid2D3D", x)
        self.output_window(x.shape[1:4])
        features = self._encode_decode(x)
        logits = self._predictor("predictor_2d")(features)
        out = {"logits_2d": logits.astype(jnp.float32), "features": features}
        if self.pyramid:
            features = self._pyramid(jnp.concatenate([features, logits], axis=-1))
            logits = self._predictor("predictor_3d")(features)
            out["features"] = features
        return logits.astype(jnp.float32), out

    def _encode_decode(self, x: Array) -> jax.Array:
        x = self._block("encoder0", 0)(x)
        skips = [x]
        for scale in range(1, SCALES):
            x = self._block(f"encoder{scale}", scale)(max_pool(x, (1, 2, 2)))
            skips.append(x)
        x = self._block("bottom", SCALES)(max_pool(x, (1, 2, 2)))
        for scale in reversed(range(SCALES)):
            # The up-convolution takes the width of the convolution that it feeds.
            first = self._convs(scale)[0][0]
            up = layers.UpConv(first, dtype=self.dtype, name=f"up{scale}")(x)
            x = self._block(f"decoder{scale}", scale)(layers.join_skip(skips[scale], up))
        return x

    def _pyramid(self, x: jax.Array) -> jax.Array:
        w = self.width
        fine = self._layers("pyramid0", ((2 * w, CUBE),) * 3)(x)
        coarse = self._layers("pyramid1", ((4 * w, CUBE),) * 5)(max_pool(x, (1, 2, 2)))
        coarse = layers.Conv(2 * w, POINT, dtype=self.dtype, name="pyramid_narrow")(coarse)
        kernel = (2, 2, 2) if self.upsample_z else (1, 2, 2)
        up = layers.UpConv(2 * w, kernel, dtype=self.dtype, name="pyramid_up")(coarse)
        return fine + layers.centre_crop(up, fine.shape[1:4])

    def _convs(self, scale: int) -> tuple[tuple[int, tuple[int, int, int]], ...]:
        full = 2 * self.width * 2**scale
        convs = ((full, FLAT), (full, FLAT))
        if scale > 1:
            return convs
        return ((full // 2, CUBE if self.conv3d_in_2d else FLAT), *convs)

    def _block(self, name: str, scale: int) -> layers.Block:
        return self._layers(name, self._convs(scale))

    def _layers(self, name: str, convs: Any) -> layers.Block:
        return layers.Block(convs, dtype=self.dtype, norm=self.norm, name=name)

    def _predictor(self, name: str) -> layers.Conv:
        activation = nn.relu if self.logit_relu else None
        return layers.Conv(self.classes, POINT, "SAME", activation, self.dtype, name=name)

    @nn.nowrap
    def output_window(self, input_window: layers.Sizes) -> layers.Sizes:
        """(z, y, x) of the input -> (z, y, x) of the logits.

        Raises:
          ValueError: if the window is not three sizes, z >= 1 and y, x >= 8.
        """
        z, y, x = layers.check_window("Hybrid2D3D", input_window, (1, 8, 8))
        return (z, y // 8 * 8, x // 8 * 8)


def parameter_group(path: Sequence[Any], *, released_tf: bool = False) -> Group | None:
    """The term of the L2 penalty (Eq. 4.3 of the thesis) to which a parameter belongs.

    Args:
      path: names from the root of the parameters to the leaf, as strings or as jax's key path;
        a leading 'params' is allowed.
      released_tf: as released, up-convolutions are not penalised.

    Returns:
      '2d' (encoder-decoder, its 3x3x3 convolutions included), '3d' (pyramid), 'head' (both
      predictors), or None where nothing is penalised.

    Raises:
      ValueError: if the path is not that of a parameter of ``Hybrid2D3D``.
    """
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    names = names[1:] if names[:1] == ["params"] else names
    module = names[0] if names else ""
    if released_tf and module.startswith(("up", "pyramid_up")):
        return None
    prefixes: dict[Group, tuple[str, ...]] = {
        "head": ("predictor_",),
        "3d": ("pyramid",),
        "2d": ("encoder", "decoder", "bottom", "up"),
    }
    for group, starts in prefixes.items():
        if module.startswith(starts):
            return group
    raise ValueError(f"parameter_group: no parameter of Hybrid2D3D at {'/'.join(names) or '()'}")
