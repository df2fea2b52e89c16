"""Networks to classify pictures with, as a task takes them: from scratch or from an encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from densejax.classification.pretrained import Encoder, fresh, network
from densejax.classification.task import HEAD
from densejax.models.mlp import MLP, check_dropout
from densejax.typing import Key, Params

# Of a linear head's fresh kernel; thesis, 5.5: N(0, 1e-3), read as the deviation.
HEAD_STD = 1e-3


@dataclass(frozen=True)
class Network:
    """What a task needs to know of a network.

    Attributes:
      init: fresh variables from a key.
      apply: as ``ImageTask.network``.
      mean: of each channel, by which pictures are standardised; empty where they are not.
      std: of each channel.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Any]
    mean: Sequence[float] = ()
    std: Sequence[float] = ()


def perceptron(
    classes: int,
    shape: Sequence[int],
    *,
    widths: Sequence[int] = (),
    dropout: float = 0.0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Network:
    """An ``MLP``; without hidden layers the head alone, drawn from N(0, 1e-3).

    Args:
      classes: c.
      shape: of a sample, without the batch.
      widths: of the hidden layers.
      dropout: of hidden values.
      mean: of each channel; empty for features.
      std: of each channel.

    Raises:
      ValueError: dropout without a hidden layer to drop values of, or not in [0, 1).
    """
    check_dropout("MLP", dropout)
    if dropout and not widths:
        raise ValueError(f"dropout is {dropout}; a head alone has no layer of dropout")
    head_std = None if widths else HEAD_STD
    model = MLP(classes, widths=tuple(widths), dropout=dropout, head_std=head_std)

    def init(key: Key) -> Params:
        return model.init(key, jnp.zeros((1, *shape)))

    return Network(init, model.apply, mean, std)


def with_head(
    encoder: Encoder,
    classes: int,
    *,
    stored: Params | None = None,
    frozen_norm: bool = False,
    dropout: float = 0.0,
) -> Network:
    """An encoder with a fresh head, whose kernel is drawn from N(0, 1e-3).

    Args:
      encoder: which, and the moments of its pictures.
      classes: c.
      stored: its variables without a head; drawn anew for each key where None.
      frozen_norm: of a ResNet, whether the norm's running moments are used in training too, and
        stay.
      dropout: of the features in front of the head.

    Raises:
      ValueError: ``dropout`` is not in [0, 1).
    """
    check_dropout(encoder.architecture, dropout)
    options = {} if encoder.architecture == "vit" else {"frozen_norm": frozen_norm}
    model = network(encoder, classes, dropout=dropout, **options)

    def init(key: Key) -> Params:
        body_key, head_key = jax.random.split(key)
        body = fresh(body_key, encoder) if stored is None else stored
        kernel = HEAD_STD * jax.random.normal(head_key, (encoder.features, classes))
        head = {"kernel": kernel, "bias": jnp.zeros(classes)}
        return jax.tree.map(jnp.asarray, dict(body, params=dict(body["params"], **{HEAD: head})))

    return Network(init, model.apply, encoder.mean, encoder.std)
