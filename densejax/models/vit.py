"""The vision transformer, with the shapes and arithmetic of timm's and torchvision's."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from densejax.models.layers import Linear, check_pictures
from densejax.models.mlp import check_dropout
from densejax.typing import Array

TRUNCATED = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021): pre-norm blocks over patches and a class token.

    GELU is exact (erf), the norm's epsilon 1e-6. There is no interpolation of positions: pictures
    have one size.

    Attributes:
      classes: number of classes.
      size: of the pictures, y and x, pixels.
      patch: of the patches, pixels; divides ``size``.
      width: d, of a token.
      depth: blocks.
      heads: of the attention; divides ``width``.
      mlp_ratio: hidden width of a block's MLP, relative to ``width``.
      dropout: chance that a feature is set to zero before the head while ``train``; needs
        ``rngs={"dropout": key}`` in ``apply``.
      head_std: standard deviation of the normal head, whose bias is zero; None is PyTorch's draw.
      dtype: of the computation; parameters, softmax, norms and logits are float32.
    """

    classes: int = 10
    size: int = 224
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: int = 4
    dropout: float = 0.0
    head_std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classify.

        Args:
          x: [b, size, size, c], floating, standardised.
          train: drop features before the head.

        Returns:
          logits [b, classes] float32, and ``out``: 'tokens' [b, 1 + n, d] after the last norm, and
          'features' [b, d], the class token among them, float32.

        Raises:
          ValueError: ``x`` has another shape, or ``patch`` or ``heads`` does not divide.
        """
        self._check(x)
        b, n, p = x.shape[0], self.size // self.patch, self.patch
        x = jnp.asarray(x, self.dtype).reshape(b, n, p, n, p, x.shape[-1])
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, n * n, -1)
        x = self._linear("patch_embed", self.width)(x)
        token = self.param("cls_token", TRUNCATED, (1, 1, self.width), jnp.float32)
        x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, self.width)).astype(x.dtype), x], 1)
        shape = (1, 1 + n * n, self.width)
        x = x + self.param("pos_embed", TRUNCATED, shape, jnp.float32).astype(x.dtype)
        for i in range(self.depth):
            x = TransformerBlock(
                self.width, self.heads, self.mlp_ratio, self.dtype, name=f"block{i}"
            )(x)
        tokens = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm")(x)
        features = tokens[:, 0]
        kept = nn.Dropout(self.dropout, deterministic=not train)(features)
        head = Linear(self.classes, std=self.head_std, name="head")
        return head(kept), {"tokens": tokens, "features": features}

    def _linear(self, name: str, features: int) -> Linear:
        return Linear(features, initialiser=TRUNCATED, dtype=self.dtype, name=name)

    @nn.nowrap
    def _check(self, x: Array) -> None:
        check_pictures("ViT", x)
        check_dropout("ViT", self.dropout)
        if x.shape[1:3] != (self.size, self.size):
            raise ValueError(
                f"ViT: expected pictures of {self.size} x {self.size}, found shape {x.shape}"
            )
        if self.size % self.patch or self.width % self.heads:
            raise ValueError(
                f"ViT: patch {self.patch} must divide size {self.size}, and heads {self.heads} "
                f"divide width {self.width}"
            )


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); [b, t, d] -> [b, t, d]."""

    width: int
    heads: int
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        x = jnp.asarray(x)
        x = x + self._attention(self._norm("norm1", x))
        y = self._linear("fc1", self.mlp_ratio * self.width)(self._norm("norm2", x))
        return x + self._linear("fc2", self.width)(nn.gelu(y, approximate=False))

    def _attention(self, x: jax.Array) -> jax.Array:
        b, t, d = x.shape
        qkv = self._linear("qkv", 3 * d)(x).reshape(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = nn.softmax(scores * (d // self.heads) ** -0.5).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, t, d)
        return self._linear("proj", d)(mixed)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)
        return norm(x).astype(self.dtype)

    def _linear(self, name: str, features: int) -> Linear:
        return Linear(features, initialiser=TRUNCATED, dtype=self.dtype, name=name)


def vit_tiny(classes: int, **options: Any) -> ViT:
    """ViT-Ti/16: width 192, 3 heads, 5.7 million parameters. ``options`` as ``ViT``."""
    return ViT(classes, **({"width": 192, "heads": 3} | options))


def vit_small(classes: int, **options: Any) -> ViT:
    """ViT-S/16: width 384, 6 heads, 22 million parameters. ``options`` as ``ViT``."""
    return ViT(classes, **({"width": 384, "heads": 6} | options))


def vit_base(classes: int, **options: Any) -> ViT:
    """ViT-B/16: width 768, 12 heads, 86.6 million parameters. ``options`` as ``ViT``."""
    return ViT(classes, **({"width": 768, "heads": 12} | options))
