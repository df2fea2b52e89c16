"""Published PyTorch parameters into our variables: SimCLR and MoCo ResNets, vision transformers.

Only ``read_torch`` needs PyTorch; the rest works on NumPy arrays by their PyTorch names. Nothing is
guessed: a name that has no place, a place that no name fills, and a shape that does not fit are
errors.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from densejax.typing import Params

Place = tuple[str, ...]
Found = tuple[Place, np.ndarray]
HEADS = ("fc", "linear", "head", "heads.head")

_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
# Suffix -> name in the block, of timm (left) and torchvision (right).
_VIT_BLOCK = {
    "norm1": "norm1",
    "ln_1": "norm1",
    "norm2": "norm2",
    "ln_2": "norm2",
    "attn.qkv": "qkv",
    "self_attention.in_proj": "qkv",
    "attn.proj": "proj",
    "self_attention.out_proj": "proj",
    "mlp.fc1": "fc1",
    "mlp.0": "fc1",
    "mlp.linear_1": "fc1",
    "mlp.fc2": "fc2",
    "mlp.3": "fc2",
    "mlp.linear_2": "fc2",
}
_VIT_TOP = {
    "patch_embed.proj": "patch_embed",
    "conv_proj": "patch_embed",
    "norm": "norm",
    "encoder.ln": "norm",
    "head": "head",
    "heads.head": "head",
    "fc": "head",
}
_VIT_ALONE = {
    "cls_token": "cls_token",
    "class_token": "cls_token",
    "pos_embed": "pos_embed",
    "encoder.pos_embedding": "pos_embed",
}


def load_simclr(path: str | Path, variables: Params) -> Params:
    """The encoder of a SimCLR file (``simclr.pth.tar``: keep 'encoder', skip 'linear').

    Args:
      path: a PyTorch file.
      variables: those of the ``ResNet`` that shall get the parameters; its head is kept.

    Returns:
      The variables, float32, of the structure of ``variables``.

    Raises:
      As ``read_torch`` and ``resnet_from_torch``.
    """
    state = select(read_torch(path), keep="encoder", skip=("linear", "fc"), name=str(path))
    return resnet_from_torch(state, variables, name=str(path))


def load_moco(path: str | Path, variables: Params) -> Params:
    """The query encoder of a MoCo v2 file (keep 'encoder_q', skip 'fc'); as ``load_simclr``.

    Args:
      path: a PyTorch file.
      variables: those of the ``ResNet`` that shall get the parameters; its head is kept.

    Returns:
      The variables, float32, of the structure of ``variables``.

    Raises:
      As ``read_torch`` and ``resnet_from_torch``.
    """
    state = select(read_torch(path), keep="encoder_q", skip=("fc",), name=str(path))
    return resnet_from_torch(state, variables, name=str(path))


def load_vit(path: str | Path, variables: Params, *, head: bool = False) -> Params:
    """A vision transformer's file, with the names of timm (and DINO) or of torchvision.

    Args:
      path: a PyTorch file.
      variables: those of the ``ViT`` that shall get the parameters.
      head: take the file's head too; otherwise that of ``variables`` is kept.

    Returns:
      The variables, float32, of the structure of ``variables``.

    Raises:
      As ``read_torch`` and ``vit_from_torch``.
    """
    state = select(read_torch(path), skip=() if head else HEADS, name=str(path))
    return vit_from_torch(state, variables, name=str(path))


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Read a PyTorch file of parameters; no program in it is run.

    A dict under ``state_dict`` is unwrapped and the prefix ``module.`` of parallel training taken
    off.

    Args:
      path: a file of ``torch.save``.

    Returns:
      name to array; floating arrays as float32.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: PyTorch is not installed.
      ValueError: the file is broken, holds more than arrays and plain values, or no array at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a file of PyTorch parameters")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is a PyTorch file; reading it needs PyTorch: pip install -e .[torch]"
        ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A broken file may raise anything.
        raise ValueError(f"{path}: cannot be read as PyTorch parameters ({error})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    tensors = found.items() if isinstance(found, Mapping) else ()
    state = {
        str(key).removeprefix("module."): (v.float() if v.is_floating_point() else v).numpy()
        for key, v in tensors
        if isinstance(v, torch.Tensor)
    }
    if not state:
        raise ValueError(f"{path}: holds no parameters; expected a dict of arrays, or 'state_dict'")
    return state


def select(
    state: Mapping[str, np.ndarray],
    *,
    keep: str = "",
    skip: Iterable[str] = (),
    name: str = "state",
) -> dict[str, np.ndarray]:
    """The entries below ``keep.``, with that prefix taken off, but for those below a ``skip.``.

    Args:
      state: PyTorch name to array.
      keep: a dotted prefix, or '' for all.
      skip: dotted prefixes, after ``keep`` or in its place.
      name: what messages call the state.

    Raises:
      ValueError: nothing is left.
    """
    start = f"{keep}." if keep else ""
    below = tuple(f"{prefix}." for prefix in skip)
    left = {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}
    left = {key: value for key, value in left.items() if not key.startswith(below)}
    if not left:
        first = sorted({key.split(".")[0] for key in state})
        raise ValueError(f"{name}: nothing below {start!r}; it has {', '.join(first)}")
    return left


def resnet_from_torch(
    state: Mapping[str, np.ndarray], variables: Params, *, name: str = "state"
) -> Params:
    """A ResNet with torchvision's names into the variables of ``models.resnet.ResNet``.

    The shortcut may be called 'downsample' or 'shortcut' and the head 'fc' or 'linear'.

    Args:
      state: PyTorch name to array, as from ``read_torch``.
      variables: ``params`` and ``batch_stats`` of the network; shapes do where ``state`` has a
        head.
      name: what messages call the state.

    Returns:
      The variables, float32. A head that ``state`` lacks is that of ``variables``.

    Raises:
      ValueError: names are unknown or missing, or shapes differ; all are listed.
    """
    return _fill(state, variables, _resnet_place, name)


def vit_from_torch(
    state: Mapping[str, np.ndarray], variables: Params, *, name: str = "state"
) -> Params:
    """A vision transformer with timm's or torchvision's names into those of ``models.vit.ViT``.

    Args:
      state: PyTorch name to array, as from ``read_torch``.
      variables: ``params`` of the network; shapes do where ``state`` has the head.
      name: what messages call the state.

    Returns:
      The variables, float32. A head that ``state`` lacks is that of ``variables``.

    Raises:
      ValueError: names are unknown or missing, or shapes differ; all are listed.
    """
    return _fill(state, variables, _vit_place, name)


def _fill(
    state: Mapping[str, np.ndarray],
    variables: Params,
    place: Callable[[str, np.ndarray], Found | None],
    name: str,
) -> Params:
    wanted = traverse_util.flatten_dict(variables)
    filled: dict[Place, Any] = {}
    faults = []
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        found = place(key, np.asarray(value))
        if found is None or found[0] not in wanted:
            faults.append(f"{key} is unknown")
        elif found[0] in filled:
            faults.append(f"{key} is there twice, under two names")
        elif found[1].shape != tuple(wanted[found[0]].shape):
            shape = tuple(wanted[found[0]].shape)
            faults.append(f"{key} gives {found[1].shape} for {'/'.join(found[0])} of {shape}")
        else:
            filled[found[0]] = np.ascontiguousarray(found[1], np.float32)
    placed = {p for key in state if (p := (place(key, np.asarray(state[key])) or (None,))[0])}
    head = {path for path in wanted if path[:2] == ("params", "head")}
    # Shapes without numbers may stand for places that are filled, not for a head that is kept.
    real = all(hasattr(wanted[path], "__array__") for path in head)
    kept = head if real and not head & placed else set()
    missing = [path for path in wanted if path not in placed and path not in kept]
    faults += [f"nothing gives {'/'.join(path)}" for path in missing]
    if faults:
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ValueError(f"{name} does not fit the network: {'; '.join(faults[:20])}{more}")
    full = {path: jnp.asarray(leaf) for path, leaf in (wanted | filled).items()}
    return traverse_util.unflatten_dict(full)


def _kernel(value: np.ndarray) -> np.ndarray:
    """[c_out, c_in, y, x] -> [y, x, c_in, c_out], and [c_out, c_in] -> [c_in, c_out]."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _weighted(module: Place, what: str, value: np.ndarray) -> Found | None:
    if what == "weight":
        return ("params", *module, "kernel"), _kernel(value)
    return (("params", *module, "bias"), value) if what == "bias" else None


def _resnet_place(key: str, value: np.ndarray) -> Found | None:
    """Where a name of torchvision's ResNet goes, and the array in our layout."""
    module, _, what = key.rpartition(".")
    if module in ("fc", "linear"):
        return _weighted(("head",), what, value)
    match = re.fullmatch(
        r"(?:layer(\d+)\.(\d+)\.)?(?:(conv|bn)(\d)|(?:downsample|shortcut)\.([01]))", module
    )
    if match is None:
        return None
    stage, block, kind, number, skip = match.groups()
    block_name: Place = (f"layer{stage}_{block}",) if stage else ()
    if kind == "conv":
        return _weighted((*block_name, f"conv{number}"), what, value)
    if skip == "0":
        return _weighted((*block_name, "shortcut_conv"), what, value)
    if what not in _NORM:
        return None
    collection, entry = _NORM[what]
    norm = f"norm{number}" if kind == "bn" else "shortcut_norm"
    return (collection, *block_name, norm, entry), value


def _vit_place(key: str, value: np.ndarray) -> Found | None:
    """Where a name of timm's or torchvision's ViT goes, and the array in our layout."""
    if key in _VIT_ALONE:
        return ("params", _VIT_ALONE[key]), value
    # The joint projection of nn.MultiheadAttention ends in "in_proj_weight".
    module, what = re.fullmatch(r"(.*?)[._]?(weight|bias|)", key).groups()  # type: ignore[union-attr]
    place: Place | None = None
    if module in _VIT_TOP:
        place = (_VIT_TOP[module],)
    elif match := re.fullmatch(r"(?:blocks\.|encoder\.layers\.encoder_layer_)(\d+)\.(.*)", module):
        inner = _VIT_BLOCK.get(match[2])
        place = (f"block{match[1]}", inner) if inner else None
    if place is None:
        return None
    if place[-1].startswith("norm"):
        return (("params", *place, _NORM[what][1]), value) if what in _NORM else None
    if place == ("patch_embed",) and value.ndim == 4:
        value = value.transpose(0, 2, 3, 1).reshape(len(value), -1)
    return _weighted(place, what, value)
