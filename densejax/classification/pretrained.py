"""Encoders on disk, and networks that classify pictures, from scratch or from an encoder.

A folder ``encoder/`` holds ``params`` and ``batch_stats`` without the head, ``encoder.json`` beside
it says which network that is and how its pictures are standardised.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from densejax.classification.task import HEAD
from densejax.data.images import CIFAR10_MEAN, CIFAR10_STD
from densejax.io import write_text
from densejax.models.mlp import MLP, check_dropout
from densejax.models.resnet import resnet18, resnet20, resnet50
from densejax.models.vit import ViT
from densejax.training.checkpoint import restore_tree, save_tree
from densejax.typing import Array, Key, Params

# How it is built, its stages, and channels put out relative to the width of the last stage.
_RESNETS = {
    "resnet18": (resnet18, 4, 1),
    "resnet50": (resnet50, 4, 4),
    "resnet20": (resnet20, 3, 1),
}
ARCHITECTURES = (*_RESNETS, "vit")
DESCRIPTION = "encoder.json"
VARIABLES = "encoder"
# Of a linear head's fresh kernel; thesis, 5.5: N(0, 1e-3), read as the deviation.
HEAD_STD = 1e-3


@dataclass(frozen=True)
class Encoder:
    """Which network an encoder is, and what pictures it expects.

    Attributes:
      architecture: 'resnet18', 'resnet50', 'resnet20' or 'vit'.
      width: channels of the first stage (published: 64; ResNet-20: 16), or of a token.
      stem: of a ResNet, 'cifar' (3x3, no pooling) or 'imagenet'.
      mean: of each channel, in the unit interval; pictures are standardised by it.
      std: of each channel.
      options: further attributes of the network, such as ``size``, ``patch``, ``depth`` and
        ``heads`` of a vision transformer.
      origin: in words, how it was made.

    Raises:
      ValueError: the architecture or stem is unknown, the width is below 1, or there are not as
        many deviations as means.
    """

    architecture: str = "resnet18"
    width: int = 64
    stem: str = "cifar"
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"architecture is {self.architecture!r}; expected one of {known}")
        if self.stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem is {self.stem!r}; expected cifar or imagenet")
        if self.width < 1 or len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"width {self.width}, mean {self.mean}, std {self.std}: expected a width of 1 or "
                "more and a mean and a deviation for each channel"
            )

    @property
    def features(self) -> int:
        """Length d of the features."""
        if self.architecture == "vit":
            return self.width
        return attributes(self)["widths"][-1] * _RESNETS[self.architecture][2]


def attributes(encoder: Encoder) -> dict[str, Any]:
    """What the encoder's network is built with, the head aside."""
    if encoder.architecture == "vit":
        return {"width": encoder.width} | dict(encoder.options)
    widths = tuple(encoder.width * 2**stage for stage in range(_RESNETS[encoder.architecture][1]))
    return {"widths": widths, "stem": encoder.stem} | dict(encoder.options)


def network(encoder: Encoder, classes: int, **options: Any) -> Any:
    """The encoder with a head: a network that returns (logits [b, c], out with 'features' [b, d]).

    Args:
      encoder: which.
      classes: number of classes, c.
      options: further attributes of the network, such as ``frozen_norm`` or ``head_std``.
    """
    build = ViT if encoder.architecture == "vit" else _RESNETS[encoder.architecture][0]
    return build(classes, **(attributes(encoder) | options))


def _without_head(variables: Params) -> Params:
    """``params`` and ``batch_stats`` of a network but for its head; other collections go."""
    params = {name: leaf for name, leaf in variables["params"].items() if name != "head"}
    return {"params": params, "batch_stats": dict(variables.get("batch_stats", {}))}


def fresh(key: Key, encoder: Encoder) -> Params:
    """Variables of an encoder that has learnt nothing, without a head.

    The distribution is that of the network's own ``init``. All kernels of a ResNet come from one
    draw of random numbers, because XLA compiles each draw for itself: twenty of them take ten
    seconds.

    Args:
      key: a jax key.
      encoder: which.
    """
    shapes = variable_shapes(encoder)
    if encoder.architecture == "vit":
        return _without_head(network(encoder, 1).init(key, jnp.zeros(_picture(encoder).shape)))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    numbers = jax.random.normal(key, (sum(leaf.size for path, leaf in leaves if _drawn(path)),))
    filled, start = [], 0
    for path, leaf in leaves:
        if _drawn(path):
            part = numbers[start : start + leaf.size].reshape(leaf.shape)
            fan_out = leaf.size // leaf.shape[-2]
            filled.append(part * math.sqrt(2 / fan_out))  # He et al. 2015, as layers.HE_FAN_OUT
            start += leaf.size
        else:
            one = path[-1].key in ("scale", "var")
            filled.append(jnp.full(leaf.shape, float(one), jnp.float32))
    return jax.tree_util.tree_unflatten(structure, filled)


def _drawn(path: Any) -> bool:
    return path[-1].key == "kernel"


def encode(
    encoder: Encoder, variables: Params, images: Array, *, train: bool = False, **options: Any
) -> tuple[jax.Array, Params]:
    """Features of standardised pictures.

    Args:
      encoder: which.
      variables: its ``params`` and ``batch_stats``, without a head.
      images: [b, y, x, c] floating, standardised.
      train: use the moments of the batch and move the running ones.
      options: further attributes of the network, such as ``dtype``.

    Returns:
      features [b, d] float32, and ``batch_stats`` afterwards.
    """
    # The network wants a head; its logits are never read, and so never computed.
    head = {"kernel": jnp.zeros((encoder.features, 1)), "bias": jnp.zeros(1)}
    whole = {"params": variables["params"] | {"head": head}}
    if variables["batch_stats"]:
        whole["batch_stats"] = variables["batch_stats"]
    model = network(encoder, 1, **options)
    (_, out), moved = model.apply(whole, images, train=train, mutable=["batch_stats"])
    stats = moved.get("batch_stats", {}) if train else variables["batch_stats"]
    return jnp.asarray(out["features"], jnp.float32), stats


def save_encoder(folder: str | Path, encoder: Encoder, variables: Params) -> None:
    """Write ``encoder/`` and ``encoder.json`` into a folder; nothing is written over.

    A folder whose description is the same and whose ``encoder/`` is there is left as it is.

    Args:
      folder: made if absent.
      encoder: which network.
      variables: ``params`` and ``batch_stats``; a head in them is left out.

    Raises:
      FileExistsError: the folder holds another encoder.
      OSError: it cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(encoder), indent=2) + "\n"
    path = folder / DESCRIPTION
    if path.exists() and path.read_text() != text:
        raise FileExistsError(f"{path} describes another encoder; it is not written over")
    if not path.exists():
        # The description comes last: where it stands, the arrays are whole.
        if not (folder / VARIABLES).exists():
            save_tree(folder / VARIABLES, _without_head(variables))
        write_text(path, text)


def load_encoder(folder: str | Path) -> tuple[Encoder, Params]:
    """Read what ``save_encoder`` wrote.

    Args:
      folder: that holds ``encoder.json`` and ``encoder/``.

    Returns:
      which network, and its variables without a head, NumPy float32.

    Raises:
      FileNotFoundError: the folder holds no encoder.
      ValueError: the description is no encoder's, or the arrays are damaged or those of another.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected a folder of experiments.pretrain (seeds/<seed>) or "
            "experiments.convert"
        )
    try:
        fields = json.loads(path.read_text())
        fields |= {name: tuple(float(value) for value in fields[name]) for name in ("mean", "std")}
        encoder = Encoder(**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no description of an encoder ({error})") from error
    return encoder, restore_tree(Path(folder) / VARIABLES, variable_shapes(encoder))


def variable_shapes(encoder: Encoder, *, head: bool = False) -> Params:
    """Shapes and dtypes of an encoder's variables, with those of a head of one class if asked."""
    init = network(encoder, 1).init
    shapes = jax.eval_shape(init, jax.random.key(0), _picture(encoder))
    return shapes if head else _without_head(shapes)


def _picture(encoder: Encoder) -> jax.ShapeDtypeStruct:
    model = network(encoder, 1)
    side = model.size if encoder.architecture == "vit" else 32
    return jax.ShapeDtypeStruct((1, side, side, len(encoder.mean)), jnp.float32)


# ---- networks that a task takes ----


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
