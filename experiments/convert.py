"""Published encoders for our rounds: a PyTorch file becomes what ``--pretrained`` takes.

Reads SimCLR's ``simclr.pth.tar`` (the prefix 'encoder'), MoCo v2's files (the prefix
'encoder_q'), and ResNets and vision transformers with the names of torchvision or timm. Heads are
left out. Reading needs PyTorch; no program in the file is run.

    python -m experiments.convert --file=simclr.pth.tar --source=simclr --out=encoders/simclr
    python -m experiments.convert --file=moco_v2_800ep_pretrain.pth.tar --source=moco \\
        --architecture=resnet50 --stem=imagenet --out=encoders/moco

Result: ``encoder/`` and ``encoder.json`` in the folder ``--out``. Seconds. Exit status 0; 2 where
something was refused: the last line says what was found and what was expected.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.classification.pretrained import (
    DESCRIPTION,
    Encoder,
    save_encoder,
    variable_shapes,
)
from densejax.cli import main, option
from densejax.data.images import CIFAR10_MEAN, CIFAR10_STD, IMAGENET_MEAN, IMAGENET_STD
from densejax.models import convert


@dataclass(frozen=True)
class Config:
    """The file, what is in it, and where the encoder goes."""

    file: str = option("", "PyTorch file of weights", essential=True)
    out: str = option("", "folder to write", essential=True)
    source: Literal["simclr", "moco", "resnet", "vit"] = option(
        "simclr", "whose names the file has: SimCLR's, MoCo's, plain torchvision's, a transformer's"
    )
    architecture: Literal["resnet18", "resnet50"] = option("resnet18", "of a ResNet")
    stem: Literal["cifar", "imagenet"] = option("cifar", "of a ResNet")
    width: int = option(0, "channels of the first stage, or of a token; 0 is 64, or 384")
    size: int = option(224, "vit: pictures, y and x", unit="pixels")
    patch: int = option(16, "vit: patches, y and x", unit="pixels")
    depth: int = option(12, "vit: blocks")
    heads: int = option(6, "vit: of the attention")
    mean: tuple[float, ...] = option(
        (), "of each channel in [0, 1]; default: CIFAR-10's for its stem, else ImageNet's"
    )
    std: tuple[float, ...] = option((), "as --mean")


def describe(config: Config) -> Encoder:
    """Which network the file is said to hold."""
    vit = config.source == "vit"
    cifar = config.stem == "cifar" and not vit
    options = ("size", "patch", "depth", "heads")
    return Encoder(
        architecture="vit" if vit else config.architecture,
        width=config.width or (384 if vit else 64),
        stem=config.stem,
        mean=config.mean or (CIFAR10_MEAN if cifar else IMAGENET_MEAN),
        std=config.std or (CIFAR10_STD if cifar else IMAGENET_STD),
        options={name: getattr(config, name) for name in options} if vit else {},
        origin=f"{config.source}, converted from {Path(config.file).name}",
    )


def read(config: Config, encoder: Encoder) -> Any:
    """The file's variables, with a head of zeros in place of its own."""
    shapes = variable_shapes(encoder, head=True)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    if config.source == "resnet":
        state = convert.select(
            convert.read_torch(config.file), skip=convert.HEADS, name=config.file
        )
        return convert.resnet_from_torch(state, variables, name=config.file)
    load = {"simclr": convert.load_simclr, "moco": convert.load_moco, "vit": convert.load_vit}
    return load[config.source](config.file, variables)


def run(config: Config, *, fast: bool = False) -> Path:
    """Convert and write; returns the folder.

    Args:
      config: what to do.
      fast: convert and write nothing: proves the file.

    Raises:
      FileExistsError: ``out`` holds an encoder.
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: PyTorch is not installed.
      ValueError: the file is not what it is said to be, or a flag is missing.
    """
    if not config.file or not (config.out or fast):
        raise ValueError("--file and --out are needed: the PyTorch file, and the folder to write")
    folder = Path(config.out)
    for name in ("encoder", DESCRIPTION):
        if not fast and (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists already and is not written over")
    encoder = describe(config)
    variables = read(config, encoder)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(
        f"{encoder.architecture} of width {encoder.width}: {numbers:,} parameters, features of "
        f"length {encoder.features}"
    )
    if fast:
        print("nothing written: --fast_dev_run")
        return folder
    save_encoder(folder, encoder, variables)
    print(f"written to {folder}")
    return folder


if __name__ == "__main__":
    main(Config, run, description=__doc__, workdir="", trains=False)
