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
from typing import Any

from densejax.cli import check_same_config, main, start_folder
from densejax.inference.whole_volume import StreamResult, stream_volume
from densejax.segmentation.loading import Architecture, architecture_of
from densejax.segmentation.prediction import PredictOptions, prepare
from densejax.segmentation.recipes import RecipeOptions
from densejax.segmentation.runs import TrainedRun, open_run, read_config

# Settings that change no byte: a prediction may go on with others.
VARYING = ("devices", "skip_unreadable")


@dataclass(frozen=True)
class Config(PredictOptions):
    """Everything that decides a result."""


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


def run(config: Config, workdir: Path) -> StreamResult:
    """Predict; returns the summary's numbers."""
    for name in ("run", "volume"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is needed; --help says what it is")
    config = as_the_run(config)
    check_same_config(config, workdir, ignore=VARYING)
    trained = open_run(config.run)
    job = prepare(config, workdir, trained, build(config, trained))
    start_folder(config, workdir, ignore=VARYING)
    return stream_volume(job)


if __name__ == "__main__":
    main(Config, run, description=__doc__)
