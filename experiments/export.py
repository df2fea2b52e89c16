"""How does a run's ensemble reach other programs: ONNX, bioimage.io, or JAX without densejax?

Writes the best members of a segmentation run as one graph: a window of grey levels in, the mean of
the members' probabilities out, standardised in the graph as the training volume was. The file is
loaded by the program that it is for and compared with densejax' own prediction of a window; the
largest difference of a probability is printed, and a file that is off by more than 1e-3 is not
kept.

    python -m experiments.segment --workdir=runs/first
    python -m experiments.export --run=runs/first --top_k=4 --format=onnx --workdir=out/model

``--format=onnx`` writes ``model.onnx`` (ONNX Runtime, OpenVINO, TensorRT), ``bioimageio`` a package
``model.bioimageio.zip`` (ilastik, deepImageJ, QuPath, bioimageio.core), ``jax`` ``model.jax``,
StableHLO for CPU, CUDA and TPU (``jax.export``). Packages: ``pip install 'densejax[export]'``.
Several formats may lie in one folder; nothing is written over without ``--overwrite``.

The batch is free and the window is fixed: the run's window of prediction, or ``--window``. ``halo``
says what to drop at each face where windows are put together. A caller gets one view of a window;
the views that the run averages are left to it.
Expected: 10 to 30 s on two cores for four planned networks; differences of 1e-7, and of 1e-6 to
3e-5 where trained networks have norms.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from densejax.cli import check_same_config, main, option, start_folder
from densejax.segmentation import export
from densejax.segmentation.loading import Architecture, architecture_of
from densejax.segmentation.recipes import RecipeOptions
from densejax.segmentation.runs import TrainedRun, read_config
from densejax.segmentation.sources import three

# Settings that change no number of the graph: other formats may be added to a folder.
VARYING = ("format", "overwrite", "authors", "license", "description")


@dataclass(frozen=True)
class Config:
    """Everything that decides a graph."""

    run: str = option("", "folder of a run of experiments.segment", essential=True)
    top_k: int = option(
        4, "members that take part, the best by their evaluation score", fast=1, essential=True
    )
    format: Literal["onnx", "bioimageio", "jax"] = option(
        "onnx", "of the file: ONNX, a package of bioimage.io, or StableHLO for JAX", essential=True
    )
    window: tuple[int, ...] = option(
        (), "input window z,y,x; default: the run's window of prediction", unit="voxels"
    )
    normalise: Literal["run", "none"] = option(
        "run",
        "standardise in the graph by the training data's mean and deviation, or leave it to the "
        "caller (who then takes those of each volume, as experiments.predict does)",
    )
    grey_levels: tuple[float, ...] = option((), "mean,deviation to standardise by in the graph")
    authors: tuple[str, ...] = option((), "bioimageio: names of the authors of the model")
    license: str = option("", "bioimageio: licence of the model by its SPDX name, such as MIT")
    description: str = option("", "bioimageio: one sentence on the model")
    overwrite: bool = option(False, "replace what is there")


@dataclass(frozen=True)
class Result:
    """What was written.

    Attributes:
      file: that was written.
      difference: the largest, of a probability, from densejax' own.
      graph: that was exported.
    """

    file: Path
    difference: float
    graph: export.Graph


def build(config: Config, run: TrainedRun) -> Architecture:
    """The network of the run."""
    return architecture_of(read_config(RecipeOptions, config.run, part=True), run)


def run(config: Config, workdir: Path) -> Result:
    """Export, try the file and say what is in it."""
    if not config.run:
        raise ValueError("--run is needed; --help says what it is")
    export.require(config.format)
    trained = export.open_trained(config.run, top_k=config.top_k)
    grey = _grey(config, trained)
    target = workdir / export.FILES[config.format]
    if target.exists() and not config.overwrite:
        raise FileExistsError(f"{target} is there; --overwrite replaces it")
    others = [name for name in export.FILES.values() if name != target.name]
    anew = config.overwrite and not any((workdir / name).exists() for name in others)
    if not anew:
        check_same_config(config, workdir, ignore=VARYING)
    architecture = build(config, trained)
    window = _window(config, architecture)
    members = trained.members[: config.top_k]
    print(f"members      {', '.join(members)} of {config.run}", flush=True)
    settings = read_config(RecipeOptions, config.run, part=True)
    notes = {"run_views": settings.views or "one", "run_blend": settings.blend or "centre"}
    graph = export.graph_of(trained, architecture, members, window=window, grey=grey, notes=notes)
    _print_graph(graph)
    if anew:
        (workdir / "config.json").unlink(missing_ok=True)
    start_folder(config, workdir, ignore=VARYING)
    if config.format == "onnx":
        difference = export.write_onnx(graph, target, overwrite=config.overwrite)
    elif config.format == "jax":
        difference = export.write_jax(graph, target, overwrite=config.overwrite)
    else:
        difference = export.write_bioimageio(
            graph,
            target,
            authors=config.authors,
            license=config.license,
            description=config.description,
            overwrite=config.overwrite,
        )
    print(f"wrote        {target} ({target.stat().st_size / 1e6:.1f} MB)")
    print(
        f"checked      a window in {export.PROGRAMS[config.format]}: probabilities differ from "
        f"densejax' own by at most {difference:.1e}"
    )
    return Result(target, difference, graph)


def _window(config: Config, architecture: Architecture) -> tuple[int, int, int]:
    """The input window, which the network must take."""
    window = three(config.window or architecture.larger or architecture.window, "--window")
    try:
        architecture.output_window(window)
    except ValueError as error:
        raise ValueError(f"--window={','.join(map(str, window))}: {error}") from error
    return window


def _grey(config: Config, run: TrainedRun) -> export.Grey | None:
    """Mean and deviation by which the graph standardises."""
    if config.grey_levels:
        if len(config.grey_levels) != 2 or not config.grey_levels[1] > 0:
            raise ValueError(
                f"--grey_levels={config.grey_levels}; expected a mean and a deviation above 0"
            )
        if config.normalise == "none":
            raise ValueError("--grey_levels and --normalise=none exclude each other")
        return config.grey_levels[0], config.grey_levels[1]
    if config.normalise == "none":
        return None
    if run.grey is None:
        raise ValueError(
            f"{run.folder} is an older run that left no grey levels of its training volume: name "
            "them by --grey_levels=mean,deviation, or leave standardising to the caller by "
            "--normalise=none"
        )
    return run.grey


def _print_graph(graph: export.Graph) -> None:
    facts = graph.facts
    print(f"window       {graph.window} -> {graph.output} voxels, fixed; batch free")
    print(f"halo         {graph.halo} voxels to drop at each face where windows are put together")
    levels = facts["grey_levels"]
    by = f"(image - {levels[0]:g}) / {levels[1]:g}" if levels else "mean 0 and deviation 1"
    print(f"standardised {facts['standardised']}: {by}", flush=True)


if __name__ == "__main__":
    main(Config, run, description=__doc__, trains=False)
