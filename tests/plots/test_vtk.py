"""VTK files: parsed by an XML reader and NumPy, they hold the surface that was written."""

import base64
import importlib.util
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from densejax.plots import vtk

needs_pyvista = pytest.mark.skipif(
    importlib.util.find_spec("pyvista") is None, reason="pyvista is not installed"
)
X, Y = np.linspace(-1, 2, 5), np.linspace(-2, 1, 4)
LOSS = 0.1 + np.arange(20.0).reshape(5, 4) ** 2
TYPES = {"Float64": "<f8", "Int64": "<i8"}


def parse(path):
    """Points, polygons, lines and point data, by the words of VTK's file format alone."""
    root = ElementTree.parse(path).getroot()
    assert root.attrib["type"] == "PolyData" and root.attrib["byte_order"] == "LittleEndian"
    assert root.attrib["header_type"] == "UInt64"
    piece = root.find("PolyData/Piece")

    def array(element):
        raw = base64.b64decode(element.text)
        content = raw[8:]
        assert int.from_bytes(raw[:8], "little") == len(content)
        values = np.frombuffer(content, TYPES[element.attrib["type"]])
        parts = int(element.attrib.get("NumberOfComponents", 1))
        return values.reshape(-1, parts) if parts > 1 else values

    def cells(name):
        found = {e.attrib["Name"]: array(e) for e in piece.find(name)}
        return (
            np.split(found["connectivity"], found["offsets"][:-1]) if len(found["offsets"]) else []
        )

    points = array(piece.find("Points/DataArray"))
    data = {e.attrib["Name"]: array(e) for e in piece.find("PointData")}
    polygons, lines = cells("Polys"), cells("Lines")
    assert int(piece.attrib["NumberOfPoints"]) == len(points)
    assert int(piece.attrib["NumberOfPolys"]) == len(polygons)
    assert int(piece.attrib["NumberOfLines"]) == len(lines)
    return points, polygons, lines, data


@needs_pyvista
def test_a_surface_that_is_not_square_comes_back(tmp_path):
    accuracy = np.linspace(0, 1, 20).reshape(5, 4)
    path = vtk.write_surface(X, Y, {"loss": LOSS, "accuracy": accuracy}, tmp_path / "a/s.vtp")
    points, polygons, lines, data = parse(path)
    assert not lines and len(polygons) == 4 * 3
    at = {(x, y): (z, a) for (x, y, z), a in zip(points, data["accuracy"], strict=True)}
    for (i, j), loss in np.ndenumerate(LOSS):
        assert at[(X[i], Y[j])] == (loss, accuracy[i, j])
    np.testing.assert_array_equal(np.sort(data["loss"]), LOSS.ravel())


@needs_pyvista
def test_polygons_are_the_cells_of_the_grid_turned_one_way(tmp_path):
    points, polygons, _, _ = parse(vtk.write_surface(X, Y, {"loss": LOSS}, tmp_path / "s.vtp"))
    middles = set()
    for polygon in polygons:
        corners = points[polygon][:, :2]
        following = np.roll(corners, -1, axis=0)
        # The shoelace formula: each is the cell's area, and all run against the clock.
        area = 0.5 * np.sum(corners[:, 0] * following[:, 1] - following[:, 0] * corners[:, 1])
        assert area == pytest.approx(0.75 * 1.0)
        middles.add(tuple(corners.mean(axis=0).round(9)))
    expected = {
        (round(float(x), 9), round(float(y), 9))
        for x in (X[1:] + X[:-1]) / 2
        for y in (Y[1:] + Y[:-1]) / 2
    }
    assert middles == expected


@needs_pyvista
def test_heights_are_logarithms_and_cut_off(tmp_path):
    loss = LOSS.copy()
    loss[0, 0], loss[4, 3] = 0.0, np.inf
    path = vtk.write_surface(X, Y, {"loss": loss}, tmp_path / "s.vtp", log=True, limits=(None, 50))
    points, _, _, data = parse(path)
    assert points[0, 2] == pytest.approx(np.log10(1.1))
    np.testing.assert_allclose(points[1:, 2], np.log10(np.minimum(loss.ravel()[1:], 50)))
    np.testing.assert_array_equal(data["loss"], loss.ravel())


@needs_pyvista
def test_what_is_not_computed_is_left_out(tmp_path):
    loss = LOSS.copy()
    loss[2, 1] = np.nan
    points, polygons, _, data = parse(vtk.write_surface(X, Y, {"loss": loss}, tmp_path / "s.vtp"))
    assert len(points) == 19 and len(polygons) == 12 - 4
    assert np.isfinite(points).all() and np.isfinite(data["loss"]).all()
    assert max(polygon.max() for polygon in polygons) < 19
    for polygon in polygons:
        assert np.ptp(points[polygon][:, :2], axis=0) == pytest.approx([0.75, 1.0])


@needs_pyvista
def test_a_trajectory_is_one_line_at_its_losses(tmp_path):
    places, losses = np.random.default_rng(0).normal(size=(6, 2)), np.geomspace(10, 0.1, 6)
    path = vtk.write_trajectory(
        places, losses, tmp_path / "t.vtp", values={"off plane": np.arange(6)}, log=True
    )
    points, polygons, lines, data = parse(path)
    assert not polygons and len(lines) == 1
    np.testing.assert_array_equal(points[lines[0]][:, :2], places)
    np.testing.assert_allclose(points[:, 2], np.log10(losses))
    np.testing.assert_array_equal(data["off plane"], np.arange(6))


def test_errors_name_what_was_wrong(tmp_path):
    path = tmp_path / "s.vtp"
    with pytest.raises(ValueError, match=r"height is 'error': expected one of \['loss'\]"):
        vtk.write_surface(X, Y, {"loss": LOSS}, path, height="error")
    with pytest.raises(ValueError, match=r"loss has shape \(4, 5\)"):
        vtk.write_surface(X, Y, {"loss": LOSS.T}, path)
    with pytest.raises(ValueError, match=r"\.vtp"):
        vtk.write_surface(X, Y, {"loss": LOSS}, tmp_path / "s.vtk")
    with pytest.raises(ValueError, match=r"expected \[t, 2\]"):
        vtk.write_trajectory(np.zeros((3, 3)), np.zeros(3), path)
    with pytest.raises(ValueError, match="loss is nan"):
        vtk.write_trajectory(np.zeros((2, 2)), [1, np.nan], path)
    assert not list(tmp_path.iterdir())


def test_without_pyvista_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvista", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'densejax\[render\]'"):
        vtk.write_surface(X, Y, {"loss": LOSS}, tmp_path / "s.vtp")
    assert not list(tmp_path.iterdir())
