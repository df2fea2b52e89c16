"""What does the ensemble of a run's best networks see in a whole volume, and where is it in doubt?

Streams a volume of any size and format through the members of a segmentation run and leaves an
OME-Zarr with class labels, the entropy of their mean probabilities and their disagreement, as
pyramids that napari and Neuroglancer open. Memory is that of a few blocks.

    python -m experiments.segment --workdir=runs/first
    python -m experiments.predict --run=runs/first --top_k=4 --volume=brain.zarr --workdir=out/brain

The volume may be Zarr, OME-Zarr, N5, precomputed (folder, gs://, s3://, https://), TIFF, HDF5 or a
folder of sections; give ``--voxel_nm=z,y,x`` where it does not state its voxels. Killed at any
moment, the same command goes on, with the same bytes in the end; run it several times at once, on
one host or many that share the folder, to divide the work. With ``--skip_unreadable``, what depends
on chunks that cannot be read stays 255, and they are listed at the end (exit code 1); remove their
blocks' ``blocks/*.done`` to have them tried again.
Expected: 0.1 to 1 million voxels a second with four narrow networks on two CPU cores.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from densejax.cli import check_same_config, main, option, start_folder
from densejax.ensembles.blocks import BLOCK_VOXELS
from densejax.segmentation.prediction.job import Architecture, prepare
from densejax.segmentation.prediction.load import architecture_of
from densejax.segmentation.prediction.trained_run import TrainedRun, open_run, read_config
from densejax.segmentation.prediction.whole_volume import Result, predict
from densejax.segmentation.recipes import RecipeOptions

# Settings that change no byte: a prediction may go on with others.
VARYING = ("devices", "skip_unreadable")


@dataclass(frozen=True)
class Config:
    """Everything that decides a result."""

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
        fast=lambda config: corner(config),
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


def build(config: Config, run: TrainedRun) -> Architecture:
    """The network of the run, in both precisions."""
    return architecture_of(read_config(RecipeOptions, config.run, part=True), run)


def as_the_run(config: Config) -> Config:
    """The configuration with the run's own views and blending where none are asked for."""
    settings = read_config(RecipeOptions, config.run, part=True)
    own: dict[str, Any] = {"blend": settings.blend or "centre", "views": settings.views or "one"}
    return replace(
        config, **{name: value for name, value in own.items() if getattr(config, name) == "auto"}
    )


def corner(config: Config) -> str:
    """A part of about one window, for a run of few steps."""
    window = config.window or build(config, open_run(config.run)).window
    return ",".join(f"0:{size}" for size in window)


def run(config: Config, workdir: Path) -> Result:
    """Predict; returns the summary's numbers."""
    for name in ("run", "volume"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is needed; --help says what it is")
    config = as_the_run(config)
    check_same_config(config, workdir, ignore=VARYING)
    trained = open_run(config.run)
    job = prepare(config, workdir, trained, build(config, trained))
    start_folder(config, workdir, ignore=VARYING)
    return predict(job)


if __name__ == "__main__":
    main(Config, run, description=__doc__)
