"""Surfaces as files that other programs open: GLB with names and colours, PLY one a surface.

In files, coordinates are x, y, z, in the unit that is asked for; right-handed, x to the right,
y down and z into the depth, as one looks at a section. A GLB says ``unit`` and ``axes`` in its
scene's extras, a PLY in a comment of its head. (glTF's own unit is the metre and its up is y:
viewers only place the camera by that.)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from densejax.io import write_bytes
from densejax.segmentation.rendering.meshes import Surface

Unit = Literal["nm", "um"]
NANOMETRES = {"nm": 1.0, "um": 1000.0}
AXES = "x, y, z; x right, y down, z into the depth"


def write_glb(
    surfaces: Mapping[str, Surface],
    path: str | Path,
    *,
    colours: Mapping[str, str] | None = None,
    unit: Unit = "um",
) -> Path:
    """All surfaces in one binary glTF file, one named and coloured mesh each.

    Args:
      surfaces: by name, in nanometres.
      path: ends in ``.glb``.
      colours: ``#RRGGBB`` by name; grey where there is none.
      unit: of the coordinates in the file, ``um`` or ``nm``.

    Returns:
      The path.

    Raises:
      ValueError: there is no surface, or the name ends otherwise.
      RuntimeError: trimesh is not installed.
    """
    path = _checked(path, ".glb")
    if not surfaces:
        raise ValueError(f"{path}: there is no surface to write")
    trimesh = _trimesh()
    scene = trimesh.Scene(metadata={"unit": unit, "axes": AXES})
    for name, surface in surfaces.items():
        material = trimesh.visual.material.PBRMaterial(
            name=name,
            baseColorFactor=_rgba((colours or {}).get(name, "#9BA3AD")),
            metallicFactor=0.0,
            roughnessFactor=0.7,
        )
        mesh = _mesh(surface, unit)
        mesh.visual = trimesh.visual.TextureVisuals(material=material)
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    return write_bytes(path, scene.export(file_type="glb"))


def write_ply(
    surface: Surface, path: str | Path, *, colour: str = "#9BA3AD", unit: Unit = "um"
) -> Path:
    """One surface as a binary PLY file.

    Args:
      surface: in nanometres.
      path: ends in ``.ply``.
      colour: ``#RRGGBB`` of all its vertices.
      unit: of the coordinates in the file, ``um`` or ``nm``.

    Returns:
      The path.

    Raises:
      ValueError: the name ends otherwise.
      RuntimeError: trimesh is not installed.
    """
    trimesh = _trimesh()
    path = _checked(path, ".ply")
    mesh = _mesh(surface, unit)
    colours = np.broadcast_to(np.array(_rgba(colour), np.uint8), (len(surface.vertices), 4))
    mesh.visual = trimesh.visual.ColorVisuals(vertex_colors=colours)
    head, body = bytes(mesh.export(file_type="ply")).split(b"end_header", 1)
    comment = f"comment unit {unit}\ncomment axes {AXES}\n".encode()
    first, rest = head.split(b"element", 1)
    return write_bytes(path, first + comment + b"element" + rest + b"end_header" + body)


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise RuntimeError(
            "meshes as GLB or PLY need the package trimesh, which is not installed: "
            "pip install 'densejax[render]'"
        ) from error
    return trimesh


def _mesh(surface: Surface, unit: str) -> Any:
    # trimesh would drop and merge vertices of its own accord.
    return _trimesh().Trimesh(
        surface.vertices[:, ::-1] / NANOMETRES[unit], surface.faces, process=False
    )


def _rgba(colour: str) -> list[int]:
    return [*bytes.fromhex(colour.removeprefix("#")), 255]


def _checked(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} is not a name of a mesh file: expected it to end in {suffix}")
    return path
