"""A prediction that is asked for by flags: opened and checked before a folder is touched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.cli import option
from densejax.data.formats_chunked import is_remote
from densejax.data.volumes import Volume, open_volume
from densejax.data.windows import check_windows
from densejax.inference.members import NOT_PREDICTED, first_of
from densejax.inference.outputs import PREDICTION, read_prediction
from densejax.inference.stream import BLOCK_VOXELS
from densejax.inference.tiles import Box, Sizes, Windowing, pooling_factor
from densejax.inference.whole_volume import StreamJob, StreamOptions
from densejax.segmentation.loading import Architecture, architecture_of
from densejax.segmentation.recipes import RecipeOptions
from densejax.segmentation.runs import TrainedRun, open_run, read_config, warn_of_voxels
from densejax.segmentation.sources import three
from densejax.typing import Params

_REFUSALS = ("credential", "permission", "denied", "unauth", "401", "403", "forbidden")


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


def prepare(
    config: PredictOptions, folder: Path, run: TrainedRun, architecture: Architecture
) -> StreamJob:
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
    volume = _open(config)
    part = _parse_part(config.part or ":,:,:", volume.array.shape)
    own = architecture.window_for(volume.array.shape)
    window = three(config.window, "--window") if config.window else own
    windowing = architecture.windowing(window, blend=config.blend, views=config.views)
    try:
        check_windows(volume.array.shape, window, windowing.output)
    except ValueError as error:
        raise ValueError(f"{volume.path}: {error}. A smaller --window may do") from error
    _check_views(windowing)
    devices = tuple(jax.local_devices())
    if not 0 <= config.devices <= len(devices):
        raise ValueError(f"--devices={config.devices}; expected 0, that is all, to {len(devices)}")
    warn_of_voxels(volume.path, volume.voxel_nm, run)
    members = _members(config, folder, run)
    params = run.load(members, architecture.init_params)
    _check_classes(run, architecture, window, params)
    scores = dict(zip(run.members, run.scores, strict=True))
    place = config.volume if is_remote(config.volume) else str(Path(config.volume).resolve())
    return StreamJob(
        folder=folder,
        volume=volume,
        part=part,
        networks=architecture.networks,
        params=params,
        members={name: scores[name] for name in members},
        source=config.run,
        class_names=run.class_names,
        windowing=windowing,
        factor=pooling_factor(architecture.output_window, window),
        devices=devices[: config.devices or len(devices)],
        options=StreamOptions(
            overlap=_overlap(config.overlap),
            probabilities=config.probabilities,
            grey=_grey(config, run),
            precision=config.precision,
            version=config.format,
            chunk=three(config.chunk, "--chunk") if config.chunk else None,
            block_voxels=config.block_voxels,
            skip_unreadable=config.skip_unreadable,
        ),
        about={
            "volume": place,
            "dataset": config.dataset,
            "organelles": run.organelles,
            "normalise": config.normalise,
        },
    )


def _parse_part(text: str, shape: Sizes) -> Box:
    """The box that ``z0:z1,y0:y1,x0:x1`` names; an end that is left out is the volume's."""
    ends = [entry.strip().split(":") for entry in text.split(",")]
    wrong = ValueError(
        f"part {text!r} of a volume of shape {shape}; expected z0:z1,y0:y1,x0:x1 inside it, such "
        "as :,0:512,0:512"
    )
    if len(ends) != 3 or any(len(pair) != 2 for pair in ends):
        raise wrong
    try:
        z, y, x = (
            (int(low or 0), int(high or size))
            for (low, high), size in zip(ends, shape, strict=True)
        )
    except ValueError:
        raise wrong from None
    inside = zip((z, y, x), shape, strict=True)
    if any(not 0 <= low < high <= size for (low, high), size in inside):
        raise wrong
    return z, y, x


def _overlap(wish: str) -> Any:
    """The name of a way to overlap, or voxels (z, y, x)."""
    if wish in ("auto", "receptive", "third"):
        return wish
    numbers = wish.split(",")
    if len(numbers) != 3 or not all(n.strip().isdecimal() for n in numbers):
        raise ValueError(
            f"--overlap={wish}; expected auto, receptive, third or three numbers z,y,x"
        )
    return tuple(int(number) for number in numbers)


def _grey(config: PredictOptions, run: TrainedRun) -> tuple[float, float] | None:
    """Mean and deviation to standardise by; None are those of what is predicted."""
    if config.grey_levels:
        mean, deviation = config.grey_levels
        return mean, deviation
    if config.normalise == "own":
        return None
    if run.grey is None:
        raise ValueError(
            f"--normalise=run: {run.folder} is an older run that left no grey levels; give them as "
            "--grey_levels=MEAN,DEVIATION, or take --normalise=own"
        )
    return run.grey


def _open(config: PredictOptions) -> Volume:
    try:
        return open_volume(
            config.volume, voxel_nm=config.voxel_nm or None, dataset=config.dataset or None
        )
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


def _check_views(windowing: Windowing) -> None:
    views, window, output = windowing.views, windowing.window, windowing.output
    if views == "turns" and window[1] != window[2]:
        raise ValueError(
            f"--views=turns: window {window} is not square in its planes; take --views=flips"
        )
    if views != "one" and any((w - o) % 2 for w, o in zip(window, output, strict=True)):
        raise ValueError(
            f"--views={views}: window {window} has its output {output} not in its middle, so that "
            "a reflected window is labelled one voxel aside; expected an even difference"
        )


def _members(config: PredictOptions, folder: Path, run: TrainedRun) -> tuple[str, ...]:
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
    network = architecture.networks["float32"]
    found = jax.eval_shape(network, first_of(params), image)[0].shape[-1]
    if found != len(run.class_names):
        raise ValueError(
            f"{run.folder}: its networks tell {found} classes apart, and it names "
            f"{len(run.class_names)}: {', '.join(run.class_names)}"
        )
