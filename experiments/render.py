"""What does a segmented volume look like?

Draws a prediction: three planes with their labels, entropy and disagreement; sections side by side;
the surface of each class in three dimensions, alone, together and turning; the surfaces as mesh
files; and the whole in Neuroglancer. Or the two films of one recorded training run.

Data: a folder that ``experiments.predict`` left, any label volume with its image, or a run that
recorded (``experiments.segment --record=200``).

    python -m experiments.render --workdir=OUT --turntable --meshes=glb,ply
    python -m experiments.render --workdir=OUT --neuroglancer
    python -m experiments.render --labels=l.tif --image=i.tif --voxel_nm=50,4,4 --workdir=pictures
    python -m experiments.render --run=runs/first --workdir=films

Pictures go to ``OUT/renders``; the same command draws them anew. Surfaces are of the finest pyramid
level within ``--triangles``, closed at the volume's border, and smoothed (areas are those of the
smoothed surfaces); the labels need not fit in memory. Meshes are in micrometres, x, y, z. pyvista,
of the extra ``render``, draws without a display, by EGL or OSMesa; where it is absent or cannot
draw, the surfaces are measured and written but not drawn, and the console says so.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from densejax.cli import main, option, start_folder
from densejax.data.levels import Level, open_levels
from densejax.plots import style
from densejax.plots.scenes import why_not
from densejax.segmentation.rendering import films as section_films
from densejax.segmentation.rendering import pictures as renders
from densejax.segmentation.rendering import subjects, viewer


@dataclass(frozen=True)
class Config:
    """Everything that decides a picture."""

    volume: str = option("", "the image, where it is not where the prediction read it")
    dataset: str = option("", "array in --volume")
    labels: str = option("", "label volume or URL to draw in place of a prediction", fast="")
    image: str = option("", "image that belongs to --labels")
    voxel_nm: tuple[float, ...] = option((), "voxel size z,y,x of --labels", unit="nm")
    class_names: tuple[str, ...] = option((), "names of the classes 0, 1, ... of --labels")
    unlabelled: int | None = option(None, "value of --labels that means not labelled, besides -1")
    label_values: tuple[int, ...] = option(
        (), "values of the classes in --labels, such as 0,255; default: 0,1,..."
    )
    classes: tuple[str, ...] = option((), "names or numbers to draw; default: all but the first")
    objects: tuple[int, ...] = option(
        (), "ids of objects in instances.zarr to draw as well", fast=()
    )
    sections: int = option(9, "sections of the montage")
    surfaces: bool = option(True, "draw surfaces in three dimensions")
    level: int | None = option(None, "pyramid level of the surfaces; none chooses by --triangles")
    triangles: int = option(1_000_000, "at most so many, of all surfaces together", fast=100_000)
    smoothing: int = option(12, "iterations of Taubin smoothing; flat voxels get more")
    turntable: bool = option(False, "a film of the surfaces turning")
    frames: int = option(120, "pictures of the turntable", fast=6)
    meshes: tuple[Literal["glb", "ply"], ...] = option((), "files of the surfaces")
    unit: Literal["um", "nm"] = option("um", "of the coordinates in the files")
    renderer: Literal["auto", "vtk"] = option(
        "auto", "what draws surfaces: VTK where it can, or VTK or an error"
    )
    neuroglancer: bool = option(
        False, "serve the volume on 127.0.0.1 and print the address", fast=False
    )
    port: int = option(0, "of what is served, and the next one; 0 takes any")
    run: str = option("", "folder of a recorded training run: make its two films", fast="")
    seed: str = option("", "member of --run, such as 0003; default: the best")
    demo: bool = option(False, "a synthetic world in place of a prediction", fast=True)


@dataclass(frozen=True)
class Rendered:
    """The files that were written."""

    files: tuple[Path, ...]
    failed: int = 0


def build(config: Config, workdir: Path) -> subjects.Subject:
    """The labelled volume that a configuration names."""
    if config.labels:
        return subjects.open_files(
            config.labels,
            image=config.image,
            voxel_nm=config.voxel_nm,
            class_names=config.class_names,
            unlabelled=config.unlabelled,
            values=config.label_values,
        )
    if config.demo:
        subjects.write_demo(workdir)
    return subjects.open_prediction(workdir, volume=config.volume, dataset=config.dataset)


def run(config: Config, workdir: Path) -> Rendered:
    """Draw what is asked for; returns the files."""
    folder = workdir / "renders"
    if config.run:
        files = section_films.films_of(config.run, folder, seed=config.seed)
        return _listed(files)
    subject = build(config, workdir)
    numbers = subjects.chosen_classes(subject, config.classes)
    if config.renderer == "vtk" and config.surfaces and why_not():
        raise ValueError(f"--renderer=vtk: {why_not()}")
    objects = _objects(config, subject)
    start_folder(config, folder, ignore=[field.name for field in fields(config)])
    files = renders.draw_planes(subject, folder, sections=config.sections)
    if config.surfaces:
        names = {number: subject.class_names[number] for number in numbers}
        colours = dict(enumerate(style.class_colours(len(subject.class_names))))
        files += _surfaces(config, subject, subject.labels, names, colours, folder, "all")
    if objects:
        names = {number: f"object {number}" for number in config.objects}
        colours = {number: style.series_colour(i) for i, number in enumerate(names)}
        files += _surfaces(config, subject, objects, names, colours, folder, "objects")
    rendered = _listed(files)
    if config.neuroglancer:
        served = viewer.serve(viewer.shown(subject), port=config.port)
        print(served.words(), flush=True)
        served.wait()
    return rendered


def _surfaces(
    config: Config,
    subject: subjects.Subject,
    levels: list[Level],
    names: dict[int, str],
    colours: dict[int, str],
    folder: Path,
    together: str,
) -> list[Path]:
    """Pictures, film and files of the surfaces of classes or objects."""
    found = renders.build_bodies(
        levels,
        names,
        colours,
        volume_nm3=float(np.prod(np.diff(subject.corners_nm, axis=0))),
        budget=config.triangles,
        level=config.level,
        smoothing=config.smoothing,
    )
    if not found:
        print("nothing to draw in three dimensions", flush=True)
        return []
    files = renders.write_meshes(
        {name: surface for name, (surface, _) in found.items()},
        {body.name: body.colour for _, body in found.values()},
        folder,
        kinds=config.meshes,
        unit=config.unit,
        together=together,
    )
    if why_not():
        print(f"surfaces are not drawn: {why_not()}", flush=True)
        return files
    return files + renders.draw_bodies(
        [body for _, body in found.values()],
        folder,
        corners_nm=subject.corners_nm,
        title=subject.name,
        together=together,
        turntable=config.turntable,
        frames=config.frames,
    )


def _objects(config: Config, subject: subjects.Subject) -> list[Level]:
    if not config.objects:
        return []
    if subject.folder is None or not (subject.folder / "instances.zarr").is_dir():
        raise ValueError(
            "--objects needs a prediction's folder with instances.zarr (python -m "
            "experiments.instances)"
        )
    return open_levels(subject.folder / "instances.zarr")


def _listed(files: list[Path]) -> Rendered:
    print("\nfiles", *(f"  {path}" for path in files), sep="\n", flush=True)
    return Rendered(tuple(files))


if __name__ == "__main__":
    main(Config, run, description=__doc__)
