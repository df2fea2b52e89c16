"""What a segmentation run has left in its folder, for those who predict with its networks."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np

from densejax.cli import from_record
from densejax.data.datasets import PLATELET_CLASSES, PLATELET_VOXEL_NM, VNC_CLASSES, VNC_VOXEL_NM
from densejax.data.synthetic import CLASS_NAMES as SYNTHETIC_CLASSES
from densejax.inference.rank import rank_members
from densejax.io import write_json
from densejax.segmentation.sources import PLATELET_ORGANELLES, Parts
from densejax.training.checkpoint import restore_tree
from densejax.typing import Params

Config = TypeVar("Config")

LEARNED_FROM = "learned_from.json"
SYNTHETIC_VOXEL_NM = (50.0, 10.0, 10.0)


@dataclass(frozen=True)
class TrainedRun:
    """A run that is, at least in part, done.

    Attributes:
      folder: of the run.
      class_names: c names.
      organelles: classes of MIoU(org), where there are some.
      voxel_nm: (z, y, x) of the training volume; None where an older run of a user's own files
        left that to the files.
      grey: mean and deviation of the training volume's grey levels; None for an older run.
      members: names of the members that are done, from the best evaluation score to the worst.
      scores: evaluation score of each.
    """

    folder: Path
    class_names: tuple[str, ...]
    organelles: tuple[int, ...]
    voxel_nm: tuple[float, float, float] | None
    grey: tuple[float, float] | None
    members: tuple[str, ...]
    scores: tuple[float, ...]

    def load(self, names: Sequence[str], init_params: Callable[[Any], Params]) -> Params:
        """Best parameters of some members, stacked, [k, ...].

        Args:
          names: of the members.
          init_params: fresh parameters from a key, for the structure.

        Raises:
          ValueError: a checkpoint is damaged or holds another network's parameters.
        """
        template = jax.eval_shape(init_params, jax.random.key(0))
        best = [restore_tree(self.folder / "seeds" / name / "best", template) for name in names]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *best)


def save_learned_from(folder: Path, parts: Parts) -> None:
    """Leave in a run's folder what its networks have learned from.

    Args:
      folder: of the run.
      parts: its volumes.
    """
    mean, deviation = grey_levels([volume.images for volume in parts.volumes("train")])
    found = {
        "class_names": list(parts.class_names),
        "organelles": list(parts.organelles),
        "voxel_nm": list(parts.train.voxel_nm),
        "mean": mean,
        "deviation": deviation,
    }
    write_json(folder / LEARNED_FROM, found, indent=2)


def grey_levels(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and deviation over all voxels of several volumes."""
    means = [float(np.mean(image, dtype=np.float64)) for image in images]
    deviations = [float(np.std(image, dtype=np.float64)) for image in images]
    if len(images) == 1:
        return means[0], deviations[0]
    sizes = np.array([image.size for image in images], np.float64)
    mean = float(np.average(means, weights=sizes))
    spread = np.square(deviations) + np.square(np.array(means) - mean)
    return mean, float(np.sqrt(np.average(spread, weights=sizes)))


def open_run(folder: str | Path) -> TrainedRun:
    """Read a segmentation run's folder.

    Raises:
      FileNotFoundError: there is no run in it.
      ValueError: no member is done, or its classes are not to be found.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    learned = _learned(folder, config)
    # An older run published members that were never scored, with parameters as they were drawn.
    found = [
        marker
        for marker in sorted((folder / "seeds").glob("*/DONE"))
        if _read_json(marker)["best_score"] is not None
    ]
    if not found:
        failed = len(list((folder / "seeds").glob("*/FAILED")))
        raise ValueError(
            f"{folder}: no member is done ({failed} failed); expected seeds/NAME/DONE with a "
            "score, as experiments.segment leaves them"
        )
    scores = [_read_json(marker)["best_score"] for marker in found]
    values = [float("nan") if score is None else float(score) for score in scores]
    order = rank_members(values)
    grey = (learned["mean"], learned["deviation"]) if "mean" in learned else None
    voxel = learned.get("voxel_nm")
    return TrainedRun(
        folder=folder,
        class_names=tuple(learned["class_names"]),
        organelles=tuple(learned.get("organelles", ())),
        voxel_nm=(voxel[0], voxel[1], voxel[2]) if voxel else None,
        grey=grey,
        members=tuple(found[place].parent.name for place in order),
        scores=tuple(values[place] for place in order),
    )


def read_config(config_class: type[Config], folder: str | Path, *, part: bool = False) -> Config:
    """The configuration that a run was begun with.

    Fields that the run is too old to have take their defaults.

    Args:
      config_class: the experiment's dataclass.
      folder: of the run.
      part: ``config_class`` is a part of the experiment's, which has more fields.

    Raises:
      FileNotFoundError: there is no ``config.json``.
      ValueError: it has fields that the experiment has not.
    """
    path = Path(folder) / "config.json"
    record = getattr(config_class, "upgrade", dict)(_read_json(path))
    if part:
        known = {field.name for field in dataclasses.fields(cast(Any, config_class))}
        record = {name: value for name, value in record.items() if name in known}
    return from_record(config_class, record, str(path))


def checksum(members: Params) -> str:
    """A short text that tells stacked parameters apart."""
    code = 0
    for leaf in jax.tree.leaves(members):
        code = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), code)
    return f"{code:08x}"


def _learned(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What the run left, or for an older one what its configuration tells."""
    if (folder / LEARNED_FROM).exists():
        return _read_json(folder / LEARNED_FROM)
    known: dict[str, tuple[Sequence[str], Sequence[float]]] = {
        "synthetic": (SYNTHETIC_CLASSES, SYNTHETIC_VOXEL_NM),
        "platelets": (PLATELET_CLASSES, PLATELET_VOXEL_NM),
        "vnc": (VNC_CLASSES, VNC_VOXEL_NM),
    }
    own = config.get("image") or config.get("data") == "files"
    if own and config.get("class_names"):
        return {"class_names": config["class_names"], "voxel_nm": config.get("voxel_nm")}
    if own or config.get("data") not in known:
        raise ValueError(f"{folder}: no {LEARNED_FROM} and no class names in config.json")
    names, voxel = known[config["data"]]
    organelles = () if config["data"] == "vnc" else PLATELET_ORGANELLES
    return {"class_names": names, "voxel_nm": voxel, "organelles": organelles}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a segmentation run")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
