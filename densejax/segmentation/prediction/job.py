"""What is to be predicted, with which networks: opened and checked before a folder is touched."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.cli import option
from densejax.data.formats_chunked import is_remote
from densejax.data.volumes import Volume, open_volume
from densejax.data.windows import check_windows
from densejax.inference.blocks import BLOCK_VOXELS
from densejax.inference.members import NOT_PREDICTED, Network, Precision, Wanted
from densejax.inference.prediction import PREDICTION, parse_part, read_prediction
from densejax.inference.tiles import Box, Sizes, corner, pooling_factor, sizes
from densejax.models.layers import draw_parameters
from densejax.segmentation.networks import network_of
from densejax.segmentation.prediction.trained_run import (
    TrainedRun,
    checksum,
    open_run,
    own_voxel,
    read_config,
)
from densejax.segmentation.recipes import RecipeOptions
from densejax.segmentation.sources import three
from densejax.typing import Params

# Beyond this ratio of voxel lengths a network sees structures of sizes that it was not trained on.
STRANGE_RATIO = 1.25
_REFUSALS = ("credential", "permission", "denied", "unauth", "401", "403", "forbidden")


@dataclass(frozen=True)
class Architecture:
    """A run's network.

    Attributes:
      init_params: fresh parameters from a key.
      networks: ``(params, [b, z, y, x, 1]) -> (logits, out)`` by precision.
      output_window: (z, y, x) of its input -> (z, y, x) of its output.
      window: (z, y, x) of the training windows.
      larger: (z, y, x) of the windows of the run's own predictions, where they are others.
    """

    init_params: Callable[[Any], Params]
    networks: Mapping[Precision, Network]
    output_window: Callable[[Sizes], Sequence[int]]
    window: Sizes
    larger: Sizes | None = None

    def window_for(self, shape: Sequence[int]) -> Sizes:
        """The run's own windows of prediction where a volume holds one, else those of training."""
        if self.larger and all(w <= n for w, n in zip(self.larger, shape, strict=True)):
            return self.larger
        return self.window


def architecture_of(settings: RecipeOptions, run: TrainedRun) -> Architecture:
    """The network of a run, in both precisions."""
    model = network_of(settings, len(run.class_names))
    window = three(settings.window or (), "--window")

    def init_params(key: jax.Array) -> Any:
        return draw_parameters(key, model, (1, *window, 1))

    return Architecture(
        init_params=init_params,
        networks={"float32": model.apply, "bfloat16": model.clone(dtype=jnp.bfloat16).apply},
        output_window=model.output_window,
        window=window,
        larger=three(settings.prediction_window or window, "--window"),
    )


def _one_window(config: "PredictOptions") -> str:
    """A part of about one window, for a run of few steps."""
    settings = read_config(RecipeOptions, config.run, part=True)
    window = config.window or architecture_of(settings, open_run(config.run)).window
    return ",".join(f"0:{size}" for size in window)


@dataclass(frozen=True)
class PredictOptions:
    """What a prediction may be asked."""

    run: str = option("", "folder of a run of experiments.segment")
    volume: str = option("", "volume to predict: file, folder or URL, of any format read")
    top_k: int = option(4, "members that predict, the best by their evaluation score", fast=1)
    dataset: str = option("", "the array inside an HDF5 file or a Zarr or N5 group")
    voxel_nm: tuple[float, ...] = option(
        (), "voxel size z,y,x; where the volume states none", unit="nm"
    )
    part: str = option(
        "",
        "z0:z1,y0:y1,x0:x1 to predict; default: the whole volume",
        unit="voxels",
        fast=_one_window,
    )
    probabilities: bool = option(False, "keep the mean probabilities, a byte a class and voxel")
    blend: Literal["auto", "centre", "gaussian"] = option(
        "auto", "take a voxel from its most central window, or a weighted mean; auto: as the run"
    )
    overlap: str = option(
        "auto",
        "of windows: twice what the network cannot see at their faces (receptive), a third as "
        "released (third), the smaller of both (auto), or z,y,x",
        unit="voxels",
    )
    window: tuple[int, ...] = option(
        (),
        "input window z,y,x; default: the run's, or its training window where the volume is small",
        unit="voxels",
    )
    views: Literal["auto", "one", "flips", "turns"] = option(
        "auto",
        "of a window that each member averages: one, 8 reflections, or 8 turns and reflections of "
        "planes (8 times the work); auto: as the run",
    )
    normalise: Literal["own", "run"] = option(
        "own", "grey levels by the mean and deviation of what is predicted, or of the training data"
    )
    grey_levels: tuple[float, ...] = option(
        (), "mean,deviation to normalise by, so that parts predicted apart agree"
    )
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "bfloat16 on an accelerator where it agrees on a real window, else float32"
    )
    format: Literal["0.5", "0.4"] = option("0.5", "NGFF version: 0.5 on Zarr 3, 0.4 on Zarr 2")
    chunk: tuple[int, ...] = option(
        (), "chunk z,y,x of the output; default: to fit the windows", unit="voxels"
    )
    block_voxels: int = option(
        0,
        f"of a block, about: what a kill loses; 0: what takes a minute, at most {BLOCK_VOXELS}",
        fast=2**20,
    )
    skip_unreadable: bool = option(False, "leave what cannot be read as 255 and go on")
    devices: int = option(0, "devices to use; 0 is all")


@dataclass(frozen=True)
class Job:
    """A prediction that is asked for.

    Attributes:
      config: ``PredictOptions``, its blending and views settled.
      folder: of the prediction.
      run: whose members predict.
      architecture: its network.
      volume: to predict.
      part: the box of it that is asked for.
      window: (z, y, x) of the network's input.
      members: names, the best first.
      params: of the members, stacked.
      devices: that may be used.
    """

    config: Any
    folder: Path
    run: TrainedRun
    architecture: Architecture
    volume: Volume
    part: Box
    window: Sizes
    members: tuple[str, ...]
    params: Params
    devices: tuple[jax.Device, ...]

    @property
    def output(self) -> Sizes:
        """(z, y, x) of the network's output."""
        z, y, x = self.architecture.output_window(self.window)
        return z, y, x

    @property
    def factor(self) -> Sizes:
        """(z, y, x) by which the network pools."""
        return pooling_factor(self.architecture.output_window, self.window)

    @property
    def wanted(self) -> Wanted:
        """What is computed of a tile."""
        return Wanted(self.config.blend, self.config.probabilities, self.config.views)

    @property
    def origin(self) -> Sizes:
        """Position of the volume's first voxel, where its file states one, else 0, 0, 0."""
        z, y, x = (round(o) for o in self.volume.offset or (0, 0, 0))
        return z, y, x

    def _name(self) -> str:
        """The volume's place; of an array, what its ``Volume`` calls it."""
        place = self.config.volume
        if not place:
            return self.volume.path
        return place if is_remote(place) else str(Path(place).resolve())

    def facts(self) -> dict[str, Any]:
        """What is asked for; a folder that holds another of these is another prediction."""
        config = self.config
        # Without a position of the volume, as before there was one.
        origin = {"volume_offset": self.origin} if any(self.origin) else {}
        return origin | {
            "volume": self._name(),
            "dataset": config.dataset,
            "volume_shape": self.volume.array.shape,
            "dtype": str(self.volume.array.dtype),
            "shape": sizes(self.part),
            "voxel_nm": self.volume.voxel_nm,
            "offset": corner(self.part),
            "run": str(Path(config.run).resolve()),
            "members": self.members,
            "members_checksum": checksum(self.params),
            "class_names": self.run.class_names,
            "organelles": self.run.organelles,
            "window": self.window,
            "output": self.output,
            "blend": config.blend,
            "views": config.views,
            "probabilities": config.probabilities,
            "normalise": config.normalise,
            "not_predicted": NOT_PREDICTED,
        }


def prepare(
    config: PredictOptions, folder: Path, run: TrainedRun, architecture: Architecture
) -> Job:
    """Open the volume and the members, and check what can be checked beforehand.

    Args:
      config: ``PredictOptions``, its blending and views settled.
      folder: of the prediction, which is only read.
      run: whose members predict.
      architecture: its network.

    Raises:
      ConnectionError: a bucket does not answer or asks for credentials.
      FileNotFoundError: there is no volume.
      ValueError: the volume, the part or a setting does not fit; the message names it.
    """
    if not 1 <= config.top_k <= len(run.members):
        raise ValueError(
            f"--top_k={config.top_k}: {run.folder} has {len(run.members)} members that are done"
        )
    if len(config.grey_levels) not in (0, 2) or min(config.grey_levels[1:], default=1.0) <= 0:
        raise ValueError(
            f"--grey_levels={config.grey_levels}; expected a mean and a deviation above 0"
        )
    volume = _open(config, run)
    part = parse_part(config.part or ":,:,:", volume.array.shape)
    own = architecture.window_for(volume.array.shape)
    window = three(config.window, "--window") if config.window else own
    output = architecture.output_window(window)
    try:
        check_windows(volume.array.shape, window, output)
    except ValueError as error:
        raise ValueError(f"{volume.path}: {error}. A smaller --window may do") from error
    _check_views(config.views, window, output)
    devices = tuple(jax.local_devices())
    if not 0 <= config.devices <= len(devices):
        raise ValueError(f"--devices={config.devices}; expected 0, that is all, to {len(devices)}")
    warn_of_voxels(volume.path, volume.voxel_nm, run)
    members = _members(config, folder, run)
    params = run.load(members, architecture.init_params)
    _check_classes(run, architecture, window, params)
    chosen = devices[: config.devices or len(devices)]
    return Job(config, folder, run, architecture, volume, part, window, members, params, chosen)


def _open(config: Any, run: TrainedRun) -> Volume:
    try:
        known = own_voxel(config.run, config.volume, run)
        if config.voxel_nm:
            known["voxel_nm"] = config.voxel_nm
        return open_volume(config.volume, dataset=config.dataset or None, **known)
    except (ConnectionError, ValueError) as error:
        refused = any(word in str(error).lower() for word in _REFUSALS)
        if not (is_remote(config.volume) and refused):
            raise
        raise ConnectionError(
            f"{config.volume}: the bucket asks for credentials that this process does not have. "
            "For gs:// run 'gcloud auth application-default login' or set "
            "GOOGLE_APPLICATION_CREDENTIALS; for s3:// set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY. It said: {error}"
        ) from error


def _check_views(views: Any, window: Sizes, output: Sequence[int]) -> None:
    if views == "turns" and window[1] != window[2]:
        raise ValueError(
            f"--views=turns: window {window} is not square in its planes; take --views=flips"
        )
    if views != "one" and any((w - o) % 2 for w, o in zip(window, output, strict=True)):
        raise ValueError(
            f"--views={views}: window {window} has its output {output} not in its middle, so that "
            "a reflected window is labelled one voxel aside; expected an even difference"
        )


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


def _members(config: Any, folder: Path, run: TrainedRun) -> tuple[str, ...]:
    """The members: those that the folder was begun with, else the best."""
    if (folder / PREDICTION).exists():
        # A run that has trained on may rank others higher by now.
        held = read_prediction(folder).get("members", ())
        if set(held) <= set(run.members) and len(held) == config.top_k:
            return tuple(held)
    return run.members[: config.top_k]


def _check_classes(
    run: TrainedRun, architecture: Architecture, window: Sizes, params: Params
) -> None:
    if len(run.class_names) > NOT_PREDICTED:
        raise ValueError(f"{run.folder}: {len(run.class_names)} classes; expected at most 255")
    image = jax.ShapeDtypeStruct((1, *window, 1), np.float32)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    found = jax.eval_shape(architecture.networks["float32"], one, image)[0].shape[-1]
    if found != len(run.class_names):
        raise ValueError(
            f"{run.folder}: its networks tell {found} classes apart, and it names "
            f"{len(run.class_names)}: {', '.join(run.class_names)}"
        )
