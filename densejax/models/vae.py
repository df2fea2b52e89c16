"""The autoencoder and the discriminator of VAAL, which tell labelled from unlabelled samples."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models.layers import HE_FAN_IN, BatchNorm, Conv2d, Linear, UpConv2d, check_pictures
from densejax.typing import Array


class VAE(nn.Module):
    """Variational autoencoder of windows (Sinha, Ebrahimi and Darrell 2019).

    Encoder: 4x4 convolutions of stride 2 with batch norm and ReLU, ``widths`` channels; two linear
    layers give mean and log variance. Decoder: a linear layer to ``widths[-1]`` channels at 1/8 of
    the window, transposed convolutions back, and a 1x1 convolution. Draws follow the released code:
    He's in the encoder and the decoder's first layer, PyTorch's own elsewhere.

    Variables and training as ``ResNet``: ``params`` and ``batch_stats``; ``apply(variables, x,
    train=True, mutable=["batch_stats"], rngs={"latent": key})``.

    Attributes:
      channels: of the pictures.
      window: y and x of the pictures, pixels: 32 or 64 as published, or another multiple of
        ``2**len(widths)``.
      latent: length of the code z.
      widths: channels of the encoder.
      dtype: of the computation; parameters and results are float32.
    """

    channels: int = 3
    window: int = 32
    latent: int = 32
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        if self.window % 2 ** len(self.widths):
            raise ValueError(
                f"VAE: window is {self.window}; expected a multiple of {2 ** len(self.widths)}"
            )
        dtype = self.dtype
        self.down = [Conv2d(w, 4, 2, 1, False, HE_FAN_IN, dtype) for w in self.widths]
        self.down_norm = [BatchNorm(dtype=dtype) for _ in self.widths]
        self.mean = Linear(self.latent)
        self.log_variance = Linear(self.latent)
        self.coarse = self.window // 2 ** (len(self.widths) - 1)
        self.expand = Linear(
            self.coarse**2 * self.widths[-1], initialiser=HE_FAN_IN, dtype=self.dtype
        )
        back = self.widths[-2::-1]
        self.up = [UpConv2d(w, dtype) for w in back]
        self.up_norm = [BatchNorm(dtype=dtype) for _ in back]
        self.paint = Linear(self.channels, dtype=dtype)

    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encode, draw a code, decode.

        Args:
          x: [b, window, window, channels], floating.
          train: draw the code from N(mean, variance) with the 'latent' key and use the moments of
            the batch; otherwise the code is the mean.

        Returns:
          the reconstruction, as ``x``, float32, and ``out``: 'mean', 'log_variance', 'code'
          [b, latent], and 'features', the mean.

        Raises:
          ValueError: ``x`` has another shape, or the window does not divide.
        """
        mean, log_variance = self.encode(x, train=train)
        code = mean
        if train:
            noise = jax.random.normal(self.make_rng("latent"), mean.shape, mean.dtype)
            code = mean + jnp.exp(0.5 * log_variance) * noise
        out = {"mean": mean, "log_variance": log_variance, "code": code, "features": mean}
        return self.decode(code, train=train), out

    def encode(self, x: Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of the code, [b, latent] float32, of x as in ``__call__``."""
        check_pictures("VAE", x)
        expected = (self.window, self.window, self.channels)
        if x.shape[1:] != expected:
            raise ValueError(f"VAE: expected an input [b, *{expected}], found shape {x.shape}")
        for conv, norm in zip(self.down, self.down_norm, strict=True):
            x = nn.relu(norm(conv(x), train=train))
        flat = jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1)
        return self.mean(flat), self.log_variance(flat)

    def decode(self, code: Array, *, train: bool = False) -> jax.Array:
        """Reconstruct [b, window, window, channels] float32 from codes [b, latent]."""
        x = self.expand(code)
        x = x.reshape(x.shape[0], self.coarse, self.coarse, self.widths[-1])
        for conv, norm in zip(self.up, self.up_norm, strict=True):
            x = nn.relu(norm(conv(x), train=train))
        return self.paint(x).astype(jnp.float32)


class Discriminator(nn.Module):
    """Says from a code whether its sample is labelled; VAAL's adversary.

    Attributes:
      widths: of the hidden layers, drawn by He's rule.
    """

    widths: tuple[int, ...] = (512, 512)

    @nn.compact
    def __call__(self, code: Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Judge.

        Args:
          code: [b, latent], floating.

        Returns:
          the logit of "labelled" [b] float32, and ``out``: 'probability' [b], its sigmoid (the
          published output), and 'features' [b, d].

        Raises:
          ValueError: ``code`` has not two axes.
        """
        if code.ndim != 2:
            raise ValueError(f"Discriminator: expected codes [b, d], found shape {code.shape}")
        x = jnp.asarray(code, jnp.float32)
        for i, width in enumerate(self.widths):
            x = nn.relu(Linear(width, initialiser=HE_FAN_IN, name=f"linear{i}")(x))
        logit = Linear(1, initialiser=HE_FAN_IN, name="head")(x)[:, 0]
        return logit, {"probability": nn.sigmoid(logit), "features": x}
