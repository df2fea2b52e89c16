"""Surfaces and trajectories as VTK files, for ParaView, PyVista or Blender.

XML PolyData (``.vtp``): quadrilaterals of a surface, or one line of a trajectory. Numbers are
little-endian and inline in base64. Grids need not be square.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import ArrayLike

from densejax.io import write_text
from densejax.plots import scales

TYPES = {"f8": "Float64", "i8": "Int64"}


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
    index = np.cumsum(there).reshape(there.shape) - 1
    whole = there[:-1, :-1] & there[1:, :-1] & there[1:, 1:] & there[:-1, 1:]
    corners = (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:])
    faces = np.stack([corner[whole] for corner in corners], axis=-1)
    places = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)[there]
    top = _heights(arrays[height][there], log, limits)
    data = {name: array[there] for name, array in arrays.items()}
    return _write(path, np.column_stack([places, top]), data, faces=faces)


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
    return _write(path, points, arrays, lines=np.arange(len(points))[None])


def _heights(
    values: np.ndarray, log: bool, limits: tuple[float | None, float | None] | None
) -> np.ndarray:
    found = scales.scale([values], logarithmic=log, limits=limits, robust=False)
    return np.clip(found.heights(values), found.low, found.high)


def _write(
    path: str | Path,
    points: np.ndarray,
    data: Mapping[str, np.ndarray],
    *,
    faces: np.ndarray | None = None,
    lines: np.ndarray | None = None,
) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".vtp":
        raise ValueError(f"{path} is not a name of VTK PolyData: expected it to end in .vtp")
    faces = np.zeros((0, 4), int) if faces is None else faces
    lines = np.zeros((0, 2), int) if lines is None else lines
    fields = "".join(_array(name, values) for name, values in data.items())
    text = (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        "<PolyData>\n"
        f'<Piece NumberOfPoints="{len(points)}" NumberOfVerts="0" NumberOfLines="{len(lines)}"'
        f' NumberOfStrips="0" NumberOfPolys="{len(faces)}">\n'
        f"<PointData Scalars={quoteattr(next(iter(data)))}>\n{fields}</PointData>\n"
        f"<Points>\n{_array('Points', points)}</Points>\n"
        f"<Lines>\n{_cells(lines)}</Lines>\n"
        f"<Polys>\n{_cells(faces)}</Polys>\n"
        "</Piece>\n</PolyData>\n</VTKFile>\n"
    )
    return write_text(path, text)


def _cells(cells: np.ndarray) -> str:
    """Corners of all cells one after another, and where each cell ends."""
    count, corners = cells.shape
    ends = np.arange(1, count + 1) * corners
    return _array("connectivity", cells.reshape(-1)) + _array("offsets", ends)


def _array(name: str, values: np.ndarray) -> str:
    """One array: its bytes, after their number, in base64."""
    kind = "f8" if np.issubdtype(values.dtype, np.floating) else "i8"
    content = np.ascontiguousarray(values, "<" + kind).tobytes()
    coded = base64.b64encode(np.array(len(content), "<u8").tobytes() + content).decode("ascii")
    parts = values.shape[1] if values.ndim == 2 else 1
    return (
        f'<DataArray type="{TYPES[kind]}" Name={quoteattr(name)} NumberOfComponents="{parts}"'
        f' format="binary">{coded}</DataArray>\n'
    )
