"""What a segmentation run has left in its folder, for those who predict with its networks."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from densejax.cli import from_record
from densejax.data.datasets import PLATELET_CLASSES, PLATELET_VOXEL_NM, VNC_CLASSES, VNC_VOXEL_NM
from densejax.data.geometry import IN_FILE
from densejax.data.synthetic import CLASS_NAMES as SYNTHETIC_CLASSES
from densejax.io import write_json
from densejax.segmentation.sources import PLATELET_ORGANELLES, Parts
from densejax.training.folders import best_parameters, rank_members
from densejax.typing import Params

Config = TypeVar("Config")

LEARNED_FROM = "learned_from.json"
SYNTHETIC_VOXEL_NM = (50.0, 10.0, 10.0)
# Beyond this ratio of voxel lengths a network sees structures of sizes that it was not trained on.
STRANGE_RATIO = 1.25


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
        """Best parameters of some members, stacked, [k, ...] (``folders.best_parameters``)."""
        return best_parameters([self.folder / "seeds" / name for name in names], init_params)


def save_learned_from(folder: Path, parts: Parts) -> None:
    """Leave in a run's folder what its networks have learned from."""
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


def own_voxel(folder: str | Path, volume: str, run: TrainedRun) -> dict[str, Any]:
    """What is known of the voxels of a volume that a run was trained on, as ``open_volume`` takes.

    Args:
      folder: of the run.
      volume: as the command names it, with ``::array`` behind it where its file holds several.
      run: what ``open_run`` found.

    Returns:
      ``voxel_nm`` where the run was told it, ``otherwise_nm`` for a file that states none; nothing
      for another volume.

    Raises:
      FileNotFoundError: there is no ``config.json``.
    """
    config = _read_json(Path(folder) / "config.json")
    given = [config.get(flag) or () for flag in ("image", "evaluation_image", "test_image")]
    known = [name for names in given for name in ([names] if isinstance(names, str) else names)]
    places = [_place(name) for name in known]
    if config.get("data_folder"):
        places.append(_place(config["data_folder"]))
    own = _place(volume)
    if not any(own == place or place in own.parents for place in places):
        return {}
    return {"voxel_nm": config.get("voxel_nm") or None, "otherwise_nm": run.voxel_nm}


def _place(name: str) -> Path:
    """Where a file lies, whatever array in it is named."""
    return Path(name.partition(IN_FILE)[0]).resolve()


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


def warn_of_voxels(name: str, voxel_nm: Sequence[float], run: TrainedRun) -> None:
    """Warn on standard error where a volume's voxels are of another size than the run's."""
    if run.voxel_nm is None:
        return
    ratios = [a / b for a, b in zip(voxel_nm, run.voxel_nm, strict=True)]
    if any(max(ratio, 1 / ratio) > STRANGE_RATIO for ratio in ratios):
        print(
            f"warning: {name} has voxels of {_nm(voxel_nm)} (z, y, x), the networks "
            f"were trained on {_nm(run.voxel_nm)}: they have not seen structures of such sizes",
            file=sys.stderr,
        )


def _nm(voxel_nm: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in voxel_nm) + " nm"


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
