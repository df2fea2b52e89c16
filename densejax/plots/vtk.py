"""Surfaces and trajectories as VTK files, for ParaView, PyVista or Blender.

XML PolyData (``.vtp``), written by VTK itself: quadrilaterals of a surface, or one line of a
trajectory. Grids need not be square.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from densejax.io import write_text
from densejax.plots import relief, scales


def write_surface(
    x: ArrayLike,
    y: ArrayLike,
    values: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    height: str = "loss",
    log: bool = False,
    limits: tuple[float | None, float | None] | None = None,
) -> Path:
    """Write a surface as quadrilaterals with all its values at their corners.

    Points that are not computed (nan), and quadrilaterals with such a corner, are left out.

    Args:
      x: ``[p]`` float, rising.
      y: ``[q]`` float, rising.
      values: ``[p, q]`` float by name; each is written as point data.
      path: of the ``.vtp``.
      height: which of the values is the third coordinate.
      log: whether the height is the decimal logarithm; a zero stands with the lowest above it.
      limits: lowest and highest value of the height, which is cut off there; None is the data's
        own, so that only infinite ones are.

    Returns:
      The path.

    Raises:
      ModuleNotFoundError: pyvista is not installed.
      ValueError: there is no such height, shapes do not match, no point is computed, a height is
        negative where it is logarithmic, or the name does not end in ``.vtp``.
    """
    if height not in values:
        raise ValueError(f"height is {height!r}: expected one of {sorted(values)}")
    x, y = np.asarray(x, float), np.asarray(y, float)
    arrays = {name: np.asarray(array, float) for name, array in values.items()}
    for name, array in arrays.items():
        if array.shape != (x.size, y.size):
            raise ValueError(
                f"{name} has shape {array.shape}: expected [p, q] = {(x.size, y.size)}"
            )
    scales.known(x, y, arrays[height], name=height)
    there = ~np.isnan(arrays[height])
    faces = (np.cumsum(there) - 1)[relief.cells(arrays[height])]
    places = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)[there]
    top = _heights(arrays[height][there], log, limits)
    data = {name: array[there] for name, array in arrays.items()}
    return _write(path, np.column_stack([places, top]), data, faces)


def write_trajectory(
    coordinates: ArrayLike,
    losses: ArrayLike,
    path: str | Path,
    *,
    values: Mapping[str, ArrayLike] | None = None,
    log: bool = False,
    limits: tuple[float | None, float | None] | None = None,
) -> Path:
    """Write a trajectory as one line at the heights of its losses.

    Args:
      coordinates: ``[t, 2]`` float, in their order.
      losses: ``[t]`` float, the true loss of each iterate.
      path: of the ``.vtp``.
      values: ``[t]`` float by name, such as the distance from the plane.
      log: as of the surface.
      limits: as of the surface, so that both stand at the same height.

    Returns:
      The path.

    Raises:
      ModuleNotFoundError: pyvista is not installed.
      ValueError: shapes do not match, a place is not finite, a loss is nan, or negative where
        heights are logarithmic, or the name does not end in ``.vtp``.
    """
    places = np.asarray(coordinates, float)
    data = {"loss": losses, **(values or {})}
    arrays = {name: np.asarray(array, float) for name, array in data.items()}
    if places.ndim != 2 or places.shape[1:] != (2,) or not len(places):
        raise ValueError(f"coordinates have shape {places.shape}: expected [t, 2]")
    for name, array in arrays.items():
        if array.shape != places.shape[:1]:
            raise ValueError(f"{name} has shape {array.shape}: expected ({len(places)},)")
    if not np.isfinite(places).all() or np.isnan(arrays["loss"]).any():
        raise ValueError("a coordinate is not finite or a loss is nan: expected finite places")
    points = np.column_stack([places, _heights(arrays["loss"], log, limits)])
    return _write(path, points, arrays, None)


def _heights(
    values: np.ndarray, log: bool, limits: tuple[float | None, float | None] | None
) -> np.ndarray:
    found = scales.scale([values], logarithmic=log, limits=limits, robust=False)
    return np.clip(found.heights(values), found.low, found.high)


def _write(
    path: str | Path, points: np.ndarray, data: Mapping[str, np.ndarray], faces: np.ndarray | None
) -> Path:
    """Write points with faces ``[m, 4]``, or in one line where these are None."""
    path = Path(path)
    if path.suffix.lower() != ".vtp":
        raise ValueError(f"{path} is not a name of VTK PolyData: expected it to end in .vtp")
    try:
        import pyvista
        from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "VTK files need the package pyvista, which is not installed: "
            "pip install 'densejax[render]'"
        ) from error
    if faces is None:
        mesh = pyvista.PolyData(points, lines=[len(points), *range(len(points))])
    else:
        mesh = pyvista.PolyData.from_regular_faces(points, faces)
    for name, values in data.items():
        mesh.point_data[name] = values
    writer = vtkXMLPolyDataWriter()
    writer.SetInputData(mesh)
    writer.SetDataModeToBinary()
    writer.SetCompressorTypeToNone()
    writer.SetHeaderTypeToUInt64()
    writer.WriteToOutputStringOn()
    writer.Write()
    return write_text(path, writer.GetOutputString())
