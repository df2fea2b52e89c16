"""Where a segmentation sweep's volumes come from: sets by name, a user's files, or a made world."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.cli import option
from densejax.data.datasets import (
    LabelledVolume,
    load_files,
    load_platelets,
    load_vnc,
    split_sections,
)
from densejax.data.synthetic import platelet_world
from densejax.data.volumes import check_pair, check_training_classes
from densejax.data.weights import (
    BORDERS,
    FLOOR,
    Borders,
    borders_between,
    class_balance,
    diffusive_edge_weights,
    edge_preservation,
    error_weights,
)
from densejax.data.windows import Sizes

# In a neurite, its contents stand where a platelet's organelles do, its membrane for the outside.
VNC_BORDERS = borders_between(background=(0,), cell=(4,), organelles=(2, 3))
LEAST_SECTIONS = 5  # the depth of a published window
# MIoU(org) of the thesis is over classes 2 to 6 (its "2-7" counts a class that is not there).
PLATELET_ORGANELLES = (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class DataOptions:
    """The flags that say what to learn; an experiment's ``Config`` inherits them."""

    data: Literal["synthetic", "vnc", "platelets", "files"] = option(
        "synthetic", "what to learn", essential=True
    )
    data_folder: str = option("", "folder of the VNC or platelet set", essential=True)
    image: str = option(
        "", "image volume or URL, of any format read; implies --data=files", essential=True
    )
    labels: str = option("", "label volume that belongs to --image", essential=True)
    voxel_nm: tuple[float, ...] = option(
        (), "voxel size z,y,x; where the file states none", unit="nm", essential=True
    )
    class_names: tuple[str, ...] = option(
        (), "names of the classes 0, 1, ... of --labels", essential=True
    )
    world: tuple[int, ...] = option(
        (24, 192, 192),
        "z,y,x of the synthetic training world; two others are half as deep",
        unit="voxels",
    )
    sections: tuple[int, ...] = option(
        (),
        "train,evaluation,test,gap along z; default: about 60, 15, 15 and 5 %",
        unit="sections",
    )


@dataclass(frozen=True)
class Parts:
    """Volumes to learn from, to rank by, and to report on.

    ``borders`` are the pairs of class groups between which edge weights are put, ``organelles`` the
    classes of MIoU(org); a user's own classes have neither.
    """

    train: LabelledVolume
    evaluation: LabelledVolume
    test: LabelledVolume
    borders: Borders = ()
    organelles: tuple[int, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.train.class_names


def default_sections(depth: int) -> tuple[int, int, int, int]:
    """Sections for train, evaluation and test and the gap between them, from all sections.

    About 15 % each for evaluation and test, at least ``LEAST_SECTIONS`` where a quarter of the
    stack is as deep; 5 % and at least one for each gap; the rest for training. It depends on
    nothing but the stack, so that runs with other windows are scored on the same sections.
    """
    least = min(LEAST_SECTIONS, depth // 4)
    part, gap = max(least, round(0.15 * depth), 1), max(1, round(0.05 * depth))
    return depth - 2 * part - 2 * gap, part, part, gap


def three(values: Sequence[int], name: str) -> Sizes:
    """The (z, y, x) that a flag gives.

    Raises:
      ValueError: it does not give three positive numbers; the message names the flag.
    """
    if len(values) != 3 or min(values) < 1:
        raise ValueError(f"{name} takes three positive numbers z,y,x; found {tuple(values)}")
    return int(values[0]), int(values[1]), int(values[2])


def synthetic_volume(shape: Sizes, *, seed: int, part: str) -> LabelledVolume:
    """One synthetic platelet world of shape (z, y, x) in voxels."""
    world = platelet_world(jax.random.key(seed), shape=shape)
    return LabelledVolume(
        f"synthetic platelet {part}",
        world.images,
        world.labels,
        None,
        world.voxel_nm,
        world.class_names,
    )


def split_parts(volume: LabelledVolume, sections: Sequence[int], *, borders: Borders = ()) -> Parts:
    """Cut one volume along z: train, evaluation, test, gap; empty is ``default_sections``."""
    if not sections:
        sections = default_sections(len(volume.images))
    if len(sections) != 4:
        raise ValueError(
            f"--sections takes four numbers, train,evaluation,test,gap; found {tuple(sections)}"
        )
    train, evaluation, test, gap = sections
    slabs = split_sections(volume, train=train, evaluation=evaluation, test=test, gap=gap)
    return Parts(*slabs, borders=borders)


def load_parts(config: Any) -> Parts:
    """The parts that a configuration names, checked: shapes, classes, finite and varying images.

    Args:
      config: ``DataOptions``.

    Raises:
      ValueError: a volume and its labels do not fit, or a class is absent from training.
      FileNotFoundError: a file is missing.
    """
    if config.image or config.labels or config.data == "files":
        if not (config.image and config.labels):
            raise ValueError(
                f"--image and --labels belong together; found --image={config.image!r} "
                f"--labels={config.labels!r}"
            )
        if len(config.class_names) < 2:
            raise ValueError("--labels needs --class_names, such as background,cell,mitochondrion")
        volume = load_files(
            config.image,
            config.labels,
            class_names=config.class_names,
            voxel_nm=tuple(config.voxel_nm) or None,
        )
        parts = split_parts(volume, config.sections)
    elif config.data == "vnc":
        parts = split_parts(
            load_vnc(_folder(config)),
            config.sections,
            borders=VNC_BORDERS,
        )
    elif config.data == "platelets":
        parts = Parts(
            *load_platelets(_folder(config)), borders=BORDERS, organelles=PLATELET_ORGANELLES
        )
    else:
        z, y, x = three(config.world, "--world")
        half = (max(z // 2, 1), y, x)
        parts = Parts(
            synthetic_volume((z, y, x), seed=0, part="training"),
            synthetic_volume(half, seed=1, part="evaluation"),
            synthetic_volume(half, seed=2, part="test"),
            borders=BORDERS,
            organelles=PLATELET_ORGANELLES,
        )
    for part in (parts.train, parts.evaluation, parts.test):
        counts = check_pair(part.images, part.labels, classes=len(part.class_names), name=part.name)
        if part is parts.train:
            check_training_classes(counts, part.class_names)
    return parts


def error_weights_of(parts: Parts, kind: str) -> np.ndarray:
    """Error weights of the training volume, [z, y, x] float32.

    Args:
      parts: the volumes and the borders that edge weights preserve.
      kind: ``published`` is the file's own weights where there are some, else floor + class balance
        + edge preservation by the thesis's formula; ``diffusive`` takes the released code's edges;
        ``balance`` is floor + class balance; ``none`` is one at every labelled voxel.

    Raises:
      ValueError: ``kind`` is none of these.
    """
    volume, classes = parts.train, len(parts.class_names)
    if kind == "none":
        return np.where(volume.labels >= 0, 1, 0).astype(np.float32)
    if kind == "published" and volume.weights is not None:
        return volume.weights
    if kind == "balance" or (kind == "published" and not parts.borders):
        return np.where(volume.labels >= 0, FLOOR, 0) + class_balance(volume.labels, classes)
    edges: dict[str, Callable[..., np.ndarray]] = {
        "published": edge_preservation,
        "diffusive": diffusive_edge_weights,
    }
    if kind not in edges:
        raise ValueError(f"error weights {kind!r} are none of published, diffusive, balance, none")
    return error_weights(volume.labels, classes, borders=parts.borders, edges=edges[kind])


def _folder(config: Any) -> Path:
    if not config.data_folder:
        raise ValueError(f"--data={config.data} needs --data_folder, the folder of the set")
    return Path(config.data_folder)
