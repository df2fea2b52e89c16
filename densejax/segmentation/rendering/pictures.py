"""Pictures of a labelled volume: planes with their labels, surfaces, turntables and mesh files."""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from densejax.data.levels import Level
from densejax.plots import animation, overlays, scenes
from densejax.plots.scenes import Body
from densejax.segmentation.rendering import meshes
from densejax.segmentation.rendering.subjects import (
    Subject,
    coarse_level,
    counts_along,
    informative_sections,
)

HEAT_NAMES = {"entropy": "entropy / log(c)", "disagreement": "share of members that disagree"}
VEILED, VEIL = 0.12, 0.12  # share of the volume from which a class would hide the others; opacity


def draw_planes(subject: Subject, folder: Path, *, sections: int = 9) -> list[Path]:
    """Planes through an informative point and a montage of sections, with each layer.

    Args:
      subject: what to draw; only the planes that are drawn are read, and a coarse level.
      folder: for ``orthoslices_labels.png``, ``..._entropy.png``, ``..._disagreement.png`` and
        ``sections.png``.
      sections: of the montage.

    Returns:
      The files.
    """
    finest, coarse = subject.labels[0], coarse_level(subject.labels)
    looked = coarse.array[...]
    classes = len(subject.class_names)
    factors = np.array(coarse.voxel_nm) / np.array(finest.voxel_nm)
    counts = [counts_along(looked, classes, axis) for axis in range(3)]

    def finer(axis: int, place: int) -> int:
        middle = int((place + 0.5) * factors[axis])
        return min(middle, finest.array.shape[axis] - 1)

    at = [finer(axis, informative_sections(counts[axis])[0]) for axis in range(3)]
    image = None if subject.image is None else subject.image.array
    drawings = {"labels": overlays.Layer(finest.array, class_names=subject.class_names)}
    for name, level in subject.layers.items():
        drawings[name] = overlays.Layer(heat=level.array, heat_name=HEAT_NAMES[name], heat_most=255)
    paths = [folder / f"orthoslices_{name}.png" for name in drawings]
    for path, (name, layer) in zip(paths, drawings.items(), strict=True):
        overlays.orthogonal(
            image,
            layer,
            voxel_nm=subject.voxel_nm,
            at=(at[0], at[1], at[2]),
            title=f"{subject.name}   {name}   z {at[0]}, y {at[1]}, x {at[2]}",
            path=path,
        )
    chosen = informative_sections(counts[0], number=sections)
    overlays.montage(
        image,
        drawings["labels"],
        voxel_nm=subject.voxel_nm,
        sections=sorted({finer(0, place) for place in chosen}),
        title=f"{subject.name}   sections",
        path=folder / "sections.png",
    )
    return [*paths, folder / "sections.png"]


def build_bodies(
    levels: Sequence[Level],
    names: Mapping[int, str],
    colours: Mapping[int, str],
    *,
    volume_nm3: float,
    budget: int,
    level: int | None = None,
    smoothing: int = 12,
) -> dict[str, tuple[meshes.Surface, Body]]:
    """Surfaces and what is drawn of them, by name; a table of them on the console.

    Args:
      levels: of the labels, the finest first.
      names: of the classes or objects, by label.
      colours: ``#RRGGBB`` by label.
      volume_nm3: of the whole volume: a class that fills much of it is drawn as a veil.
      budget: triangles of all together.
      level: None chooses the finest within the budget.
      smoothing: iterations of Taubin's where voxels are as wide as deep; more where they are not.

    Raises:
      ValueError: the budget is exceeded, or there is no such level.
    """
    index, counts = meshes.choose_level(levels, list(names), budget=budget, level=level)
    chosen = levels[index]
    size = " x ".join(f"{length:g}" for length in chosen.voxel_nm)
    total = sum(counts.values())
    print(f"surfaces     level {index}, voxels {size} nm, about {total:,} triangles", flush=True)
    present = [number for number in names if counts[number]]
    for number in names:
        if number not in present:
            print(f"{names[number]:<24}no voxel at this level: left out")
    if not present:
        return {}
    built = meshes.build_surfaces(chosen, present, progress=_progress)
    # A step as high as five voxels are wide needs the longer way.
    steps = max(chosen.voxel_nm) / min(chosen.voxel_nm)
    print(f"{'':<24}{'triangles':>12}{'area um2':>14}{'volume um3':>14}{'Euler':>8}")
    found = {}
    for number, rough in built.items():
        surface = meshes.smooth(
            rough, iterations=round(smoothing * steps), pass_band=meshes.PASS_BAND / steps
        )
        name = names[number]
        print(
            f"{name:<24}{len(surface.faces):>12,}{surface.area / 1e6:>14.4g}"
            f"{surface.volume / 1e9:>14.4g}{surface.euler:>8,}",
            flush=True,
        )
        veiled = rough.volume > VEILED * volume_nm3 and len(built) > 1
        body = Body(name, surface.vertices, surface.faces, colours[number], VEIL if veiled else 1.0)
        found[name] = surface, body
    return found


def draw_bodies(
    bodies: Sequence[Body],
    folder: Path,
    *,
    corners_nm: np.ndarray,
    title: str,
    together: str = "all",
    turntable: bool = False,
    frames: int = 120,
) -> list[Path]:
    """Each body alone, all together, and all turning.

    Args:
      bodies: at least one.
      folder: for ``surfaces_NAME.png``, ``all.png`` and ``turntable.mp4`` (``.gif`` where there is
        no ffmpeg, which is said).
      corners_nm: [2, 3], of the volume, (z, y, x).
      title: of the pictures.
      together: name of the picture of all.
      turntable: whether to make the film.
      frames: of the film.

    Returns:
      The files.

    Raises:
      RuntimeError: pyvista is not installed, or cannot draw here.
    """
    paths = []
    options: dict[str, Any] = {"corners_nm": corners_nm}
    for body in bodies:
        alone = dataclasses.replace(body, opacity=1.0)
        paths.append(folder / f"surfaces_{_file_name(body.name)}.png")
        scenes.picture([alone], title=f"{title}   {body.name}", path=paths[-1], **options)
    options["title"] = title
    paths.append(folder / f"{together}.png")
    scenes.picture(bodies, path=paths[-1], **options)
    if turntable:
        path = folder / f"turntable{animation.film_suffix(report=print)}"
        paths.append(scenes.turntable(bodies, path, frames=frames, **options))
    return paths


def write_meshes(
    surfaces: Mapping[str, meshes.Surface],
    colours: Mapping[str, str],
    folder: Path,
    *,
    kinds: Sequence[str],
    unit: meshes.Unit,
    together: str = "all",
) -> list[Path]:
    """One GLB of all surfaces, and a PLY of each.

    Raises:
      ValueError: a kind is neither ``glb`` nor ``ply``.
      ModuleNotFoundError: trimesh is not installed.
    """
    paths = []
    for kind in kinds:
        if kind not in ("glb", "ply"):
            raise ValueError(f"--meshes: {kind!r} is neither glb nor ply")
        if kind == "glb":
            path = folder / f"{together}.glb"
            paths.append(meshes.write_glb(surfaces, path, colours=colours, unit=unit))
            continue
        for name, surface in surfaces.items():
            path = folder / f"{_file_name(name)}.ply"
            paths.append(meshes.write_ply(surface, path, colour=colours[name], unit=unit))
    return paths


def _file_name(name: str) -> str:
    """A class's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "class"


def _progress(boxes: Iterator[Any], total: int) -> Iterator[Any]:
    shown = sys.stdout.isatty() and total > 1
    yield from tqdm(boxes, total=total, desc="surfaces", unit="block", disable=not shown)
