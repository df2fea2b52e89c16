"""Where a segmentation sweep's volumes come from: sets by name, a user's files, or a made world."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.cli import option
from densejax.data.cases import Case, Cases, find_cases
from densejax.data.datasets import LabelledVolume, load_files, load_platelets, load_vnc
from densejax.data.label_values import check_values
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
from densejax.segmentation.splits import (
    PARTS,
    By,
    Division,
    Part,
    divided,
    parse_fold,
    split_volume,
)

# In a neurite, its contents stand where a platelet's organelles do, its membrane for the outside.
VNC_BORDERS = borders_between(background=(0,), cell=(4,), organelles=(2, 3))
LABELLED_ENOUGH = 0.5  # of the voxels, below which windows are drawn around labelled ones
# MIoU(org) of the thesis is over classes 2 to 6 (its "2-7" counts a class that is not there).
PLATELET_ORGANELLES = (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class DataOptions:
    """The flags that say what to learn; an experiment's ``Config`` inherits them."""

    data: Literal["synthetic", "vnc", "platelets", "files"] = option(
        "synthetic", "data set; files: what --image and --labels name", essential=True
    )
    data_folder: str = option("", "folder of the VNC or platelet set", essential=True)
    image: str = option(
        "",
        "image volume or URL, of any format read; several with commas or repeated, or a folder of "
        "cases as nnU-Net and BiaPy have it; implies --data=files",
        essential=True,
        joined=True,
    )
    labels: str = option(
        "", "label volumes that belong to --image, in its order", essential=True, joined=True
    )
    voxel_nm: tuple[float, ...] = option(
        (),
        "voxel size z,y,x, where the file states none; three numbers for all volumes or for each",
        unit="nm",
        essential=True,
    )
    class_names: tuple[str, ...] = option(
        (),
        "names of the classes, in the order of their numbers in --labels: 0, 1, ...",
        essential=True,
    )
    label_values: tuple[int, ...] = option(
        (), "values of the classes in --labels, in the order of --class_names; default: 0,1,..."
    )
    unlabelled: int | None = option(
        None, "value of --labels that means not labelled, besides -1, such as 0 or 255"
    )
    evaluation_image: str = option(
        "", "volumes that rank, in place of a part of --image", joined=True
    )
    evaluation_labels: str = option(
        "", "label volumes that belong to --evaluation_image", joined=True
    )
    test_image: str = option("", "volumes to report on, in place of a part of --image", joined=True)
    test_labels: str = option("", "label volumes that belong to --test_image", joined=True)
    world: tuple[int, ...] = option(
        (24, 192, 192),
        "z,y,x of the synthetic training world; two others are half as deep",
        unit="voxels",
    )
    sections: tuple[int, ...] = option(
        (),
        "sections for train,evaluation,test,gap along z; default: about 60, 15, 15 and 5 %",
        unit="sections",
    )
    split: Literal["labelled", "sections"] | None = option(
        None,
        "of a volume with unlabelled sections: what is labelled (default), or sections, labelled "
        "or not",
    )
    fold: str = option(
        "", "cross-validation: of --image, fold K of N ranks and the others train, such as 0/5"
    )


@dataclass(frozen=True)
class Parts:
    """Volumes to learn from, to rank by, and to report on.

    ``borders`` are the pairs of class groups between which edge weights are put, ``organelles`` the
    classes of MIoU(org); a user's own classes have neither. ``further`` are the volumes beside the
    first of each part, ``divisions`` how volumes were cut, and ``sparse`` says that little of them
    is labelled, so that windows are drawn around what is. Where nothing else can test, ``test`` is
    ``evaluation``.
    """

    train: LabelledVolume
    evaluation: LabelledVolume
    test: LabelledVolume
    borders: Borders = ()
    organelles: tuple[int, ...] = ()
    further: Mapping[str, tuple[LabelledVolume, ...]] = field(default_factory=dict)
    divisions: tuple[Division, ...] = ()
    sparse: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.train.class_names

    def volumes(self, part: Part) -> tuple[LabelledVolume, ...]:
        """All volumes of a part, one or more."""
        return (getattr(self, part), *self.further.get(part, ()))

    @property
    def tested(self) -> bool:
        """Whether the test volumes are others than those that rank."""
        return self.test is not self.evaluation


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


def split_parts(
    volume: LabelledVolume,
    sections: Sequence[int],
    *,
    borders: Borders = (),
    by: By = "labelled",
    fold: tuple[int, int] | None = None,
) -> Parts:
    """Cut one volume in train, evaluation and test, as ``splits.split_volume`` does."""
    return _assemble({"train": [volume]}, sections, borders=borders, by=by, fold=fold)


def load_parts(config: Any, *, several: bool = False) -> Parts:
    """The parts that a configuration names, checked: shapes, classes, finite and varying images.

    Args:
      config: ``DataOptions``.
      several: whether the caller takes more than one volume a part.

    Raises:
      ValueError: a volume and its labels do not fit, a class is absent from training, or a part has
        no label.
      FileNotFoundError: a file is missing.
    """
    divided_by: dict[str, Any] = {
        "by": config.split or "labelled",
        "fold": parse_fold(config.fold),
    }
    check_values(config.label_values, config.unlabelled, classes=len(config.class_names) or None)
    own = config.image or config.labels or config.data == "files"
    _check_flags(config, bool(own))
    if own:
        parts = _assemble(_load_own(config), config.sections, **divided_by)
    elif config.data == "vnc":
        parts = split_parts(
            load_vnc(_folder(config)), config.sections, borders=VNC_BORDERS, **divided_by
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
    if any(parts.further.values()) and not several:
        raise ValueError(
            f"--image names several volumes ({', '.join(v.name for v in parts.volumes('train'))}), "
            "and this command takes one; python -m experiments.segment takes several"
        )
    total = np.zeros(len(parts.class_names), np.int64)
    for part in PARTS:
        for volume in parts.volumes(part):
            counts = check_pair(
                volume.images, volume.labels, classes=len(volume.class_names), name=volume.name
            )
            if not counts.any():
                raise ValueError(
                    f"{volume.name}: no voxel is labelled; expected labels in each volume of the "
                    f"{part} part"
                )
            if part == "train":
                total += counts
    try:
        check_training_classes(total, parts.class_names)
    except ValueError as error:
        if not parts.divisions:
            raise
        divided_as = "; ".join(f"{one.name}: {one.text}" for one in parts.divisions)
        raise ValueError(
            f"{error} in the part that trains ({divided_as}; --sections, or --evaluation_image and "
            "--test_image, divide otherwise)"
        ) from error
    return parts


def _check_flags(config: Any, own: bool) -> None:
    """Refuse flags of a user's files that nothing would read."""
    beside = [*("evaluation_image", "evaluation_labels", "test_image", "test_labels")]
    beside += ["label_values", "unlabelled"]
    given = [name for name in beside if getattr(config, name) not in ("", (), None)]
    if given and not own:
        raise ValueError(
            f"--{given[0]} belongs to volumes of your own; give --image and --labels, too"
        )
    if config.fold and config.evaluation_image:
        raise ValueError(
            "--fold takes what ranks from --image, and --evaluation_image gives it; give one"
        )
    if config.fold and not own and config.data != "vnc":
        raise ValueError(f"--fold divides one volume, and --data={config.data} has three")


def _load_own(config: Any) -> dict[Part, list[LabelledVolume]]:
    """A user's volumes by part; a part without any is cut from those that train."""
    found = find_cases(config.image, config.labels)
    names = tuple(config.class_names) or found.class_names
    if len(names) < 2:
        raise ValueError("--labels needs --class_names, such as background,cell,mitochondrion")
    cases: dict[Part, tuple[Case, ...]] = {
        "train": found.train,
        "evaluation": _other_cases(config, "evaluation", found),
        "test": _other_cases(config, "test", found),
    }
    count = sum(map(len, cases.values()))
    voxels = tuple(config.voxel_nm)
    if len(voxels) not in (0, 3, 3 * count):
        raise ValueError(
            f"--voxel_nm has {len(voxels)} numbers; expected z,y,x, or three for each of the "
            f"{count} volumes, those of training first"
        )
    unlabelled = found.unlabelled if config.unlabelled is None else config.unlabelled
    volumes: dict[Part, list[LabelledVolume]] = {}
    number = 0
    for part in PARTS:
        volumes[part] = []
        for case in cases[part]:
            own = voxels[3 * number : 3 * number + 3] if len(voxels) > 3 else voxels
            number += 1
            volumes[part].append(
                load_files(
                    case.image,
                    case.labels,
                    class_names=names,
                    voxel_nm=own or None,
                    unlabelled=unlabelled,
                    values=config.label_values,
                )
            )
    _compare_voxels([volume for part in PARTS for volume in volumes[part]])
    return volumes


def _compare_voxels(volumes: Sequence[LabelledVolume]) -> None:
    """Warn of voxels that differ much: what one network learns of one it hardly knows in others."""
    sizes = np.array([volume.voxel_nm for volume in volumes])
    ratios = sizes.max(0) / sizes.min(0)
    if ratios.max() > 1.25:
        axis = int(ratios.argmax())
        low, high = (volumes[int(i)] for i in (sizes[:, axis].argmin(), sizes[:, axis].argmax()))
        warnings.warn(
            f"voxels differ by {ratios.max():.2g} times along {'zyx'[axis]}: {low.name} has "
            f"{low.voxel_nm} nm (z, y, x), {high.name} {high.voxel_nm} nm; nothing is resampled",
            stacklevel=2,
        )


def _other_cases(config: Any, part: Part, found: Cases) -> tuple[Case, ...]:
    image, labels = getattr(config, f"{part}_image"), getattr(config, f"{part}_labels")
    stated: tuple[Case, ...] = getattr(found, part)
    if not (image or labels):
        return stated
    return find_cases(image, labels, flags=(f"{part}_image", f"{part}_labels")).train


def _assemble(
    volumes: Mapping[Part, Sequence[LabelledVolume]],
    sections: Sequence[int],
    *,
    borders: Borders = (),
    by: By = "labelled",
    fold: tuple[int, int] | None = None,
) -> Parts:
    """Cut from the training volumes what has no volumes of its own."""
    found: dict[Part, list[LabelledVolume]] = {
        part: list(volumes.get(part, ())) for part in PARTS if part != "train"
    }
    if fold and found["evaluation"]:
        raise ValueError("--fold takes what ranks from --image, and a folder of cases gives it")
    # Who brings volumes that rank asks for no test beside: all else may train.
    missing: list[Part] = [part for part in PARTS if part != "train" and not found.get(part)]
    if found["evaluation"]:
        missing = []
    found["train"] = []
    divisions = []
    for volume in volumes["train"]:
        pieces = split_volume(
            volume, sections=sections, parts=["train", *missing], by=by, fold=fold
        )
        for piece in pieces:
            found[piece.part].append(piece.volume)
        divisions.append(divided(volume, pieces))
    found["test"] = found["test"] or found["evaluation"]
    judged: tuple[Part, ...] = ("train", "evaluation")
    labelled = [
        sum(int((volume.labels >= 0).sum()) for volume in found[part])
        / sum(volume.labels.size for volume in found[part])
        for part in judged
    ]
    return Parts(
        found["train"][0],
        found["evaluation"][0],
        found["test"][0],
        borders=borders,
        further={part: tuple(found[part][1:]) for part in PARTS if found[part][1:]},
        divisions=tuple(divisions),
        sparse=by != "sections" and min(labelled) < LABELLED_ENOUGH,
    )


def error_weights_of(parts: Parts, kind: str) -> np.ndarray:
    """Error weights of the first training volume, as ``volume_weights``."""
    return volume_weights(parts.train, kind, borders=parts.borders)


def volume_weights(volume: LabelledVolume, kind: str, *, borders: Borders = ()) -> np.ndarray:
    """Error weights of a training volume, [z, y, x] float32.

    Args:
      volume: whose labels are weighed.
      kind: ``published`` is the file's own weights where there are some, else floor + class balance
        + edge preservation by the thesis's formula; ``diffusive`` takes the released code's edges;
        ``balance`` is floor + class balance; ``none`` is one at every labelled voxel.
      borders: pairs of class groups between which edge weights are put.

    Raises:
      ValueError: ``kind`` is none of these.
    """
    classes = len(volume.class_names)
    if kind == "none":
        return np.where(volume.labels >= 0, 1, 0).astype(np.float32)
    if kind == "published" and volume.weights is not None:
        return volume.weights
    if kind == "balance" or (kind == "published" and not borders):
        return np.where(volume.labels >= 0, FLOOR, 0) + class_balance(volume.labels, classes)
    edges: dict[str, Callable[..., np.ndarray]] = {
        "published": edge_preservation,
        "diffusive": diffusive_edge_weights,
    }
    if kind not in edges:
        raise ValueError(f"error weights {kind!r} are none of published, diffusive, balance, none")
    return error_weights(volume.labels, classes, borders=borders, edges=edges[kind])


def _folder(config: Any) -> Path:
    if not config.data_folder:
        raise ValueError(f"--data={config.data} needs --data_folder, the folder of the set")
    return Path(config.data_folder)
