"""Surfaces: closed, joined without seams, and of the area and volume that geometry gives."""

import itertools
import sys

import numpy as np
import pytest

pytest.importorskip("skimage", reason="surfaces need scikit-image")

from densejax.data.formats import LazyArray
from densejax.data.levels import Level, thinned
from densejax.data.volumes import Volume
from densejax.segmentation.rendering import meshes

VOXEL = (50.0, 10.0, 8.0)


def level_of(labels, *, voxel_nm=VOXEL, origin_nm=(0.0, 0.0, 0.0)):
    array = LazyArray(labels.shape, labels.dtype, lambda box: labels[box])
    return Level(array, voxel_nm, origin_nm)


def noise(shape=(13, 17, 19), classes=4):
    return np.random.default_rng(0).integers(0, classes, shape).astype(np.uint8)


def ball(radius_nm, voxel_nm, shape):
    places = np.indices(shape).reshape(3, -1).T * voxel_nm
    middle = (np.array(shape) - 1) / 2 * voxel_nm
    inside = np.linalg.norm(places - middle, axis=1) <= radius_nm
    return inside.reshape(shape).astype(np.uint8)


def directed_edges(surface):
    faces = surface.faces
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def assert_closed(surface):
    """Each directed edge is there once, and once the other way round."""
    edges = directed_edges(surface)
    assert len(np.unique(edges, axis=0)) == len(edges)
    there, back = (np.unique(way, axis=0) for way in (edges, edges[:, ::-1]))
    np.testing.assert_array_equal(there, back)


def as_triangles(surface):
    """The triangles as a set that knows neither numbers nor order, but the way round."""
    corners = np.rint(surface.vertices[surface.faces] * 2).astype(int)
    first = [int(np.lexsort(one.T[::-1])[0]) for one in corners]
    return sorted(np.roll(one, -k, axis=0).tolist() for one, k in zip(corners, first, strict=True))


@pytest.mark.parametrize("block", [(4, 5, 6), (13, 17, 19), (3, 30, 2)])
def test_blocks_join_without_seams_whatever_their_size(block):
    level = level_of(noise())
    whole = meshes.build_surfaces(level, (1, 2, 3), block=(99, 99, 99))
    blocks = meshes.build_surfaces(level, (1, 2, 3), block=block)
    for number, surface in blocks.items():
        assert_closed(surface)
        assert len(surface.vertices) == len(whole[number].vertices)
        assert as_triangles(surface) == as_triangles(whole[number])
        assert surface.euler == whole[number].euler


def test_a_box_has_the_area_and_volume_that_geometry_gives():
    labels = np.zeros((9, 12, 14), np.uint16)
    labels[2:6, 3:10, 4:12] = 7
    surface = meshes.build_surfaces(level_of(labels), [7], block=(5, 5, 5))[7]
    # Marching cubes cut the twelve edges and eight corners of a box of voxels off halfway.
    n, s = np.array([4, 7, 8]) - 1, np.array(VOXEL)
    volume = n.prod() + n.prod() * (1 / n).sum() + n.sum() / 2 + 8 / 48
    assert surface.volume == pytest.approx(volume * s.prod(), rel=1e-12)
    pairs = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
    faces = sum(2 * n[b] * n[c] * s[b] * s[c] for _, b, c in pairs)
    edges = sum(4 * n[a] * s[a] * 0.5 * np.hypot(s[b], s[c]) for a, b, c in pairs)
    corners = np.sqrt(sum((s[b] * s[c]) ** 2 for _, b, c in pairs))
    assert surface.area == pytest.approx(faces + edges + corners, rel=1e-12)
    assert surface.euler == 2
    # The box's faces lie half a voxel outside its outer voxels' centres.
    np.testing.assert_allclose(surface.vertices.min(0), (np.array([2, 3, 4]) - 0.5) * s)
    np.testing.assert_allclose(surface.vertices.max(0), (np.array([5, 9, 11]) + 0.5) * s)


# What is left of the steps after smoothing: of a twentieth of the radius, and of a fifth.
@pytest.mark.parametrize(
    ("voxel_nm", "shape", "left"), [((5, 5, 5), (50,) * 3, 0.03), ((20, 5, 5), (14, 50, 50), 0.08)]
)
def test_a_ball_is_near_its_formula_and_nearer_when_smoothed(voxel_nm, shape, left):
    radius = 100.0
    labels = ball(radius, voxel_nm, shape)
    level = level_of(labels, voxel_nm=voxel_nm)
    rough = meshes.build_surfaces(level, [1], block=(7, 16, 16))[1]
    fine = meshes.smooth(rough, iterations=12)
    area, volume = 4 * np.pi * radius**2, 4 / 3 * np.pi * radius**3
    assert rough.euler == fine.euler == 2
    assert_closed(rough)
    assert rough.volume == pytest.approx(volume, rel=0.02)
    assert fine.volume == pytest.approx(volume, rel=0.02)
    assert fine.area == pytest.approx(area, rel=left)
    assert abs(fine.area - area) < abs(rough.area - area)
    np.testing.assert_allclose(fine.vertices.mean(0), rough.vertices.mean(0), atol=0.5)


def test_a_ring_has_a_handle_and_a_shell_two_surfaces():
    ring = np.zeros((3, 7, 7), np.uint8)
    ring[1, 1:6, 1:6] = 1
    ring[1, 2:5, 2:5] = 0
    shell = np.ones((5, 5, 5), np.uint8)
    shell[2, 2, 2] = 0
    assert meshes.build_surfaces(level_of(ring), [1])[1].euler == 0
    hollow = meshes.build_surfaces(level_of(shell), [1])[1]
    assert hollow.euler == 4
    full = meshes.build_surfaces(level_of(np.ones((5, 5, 5), np.uint8)), [1])[1]
    # A hole of one voxel is an octahedron with half axes of half a voxel.
    taken = 1 / 6 * np.prod(VOXEL)
    assert full.volume - hollow.volume == pytest.approx(taken, rel=1e-9)


def test_objects_cut_by_the_border_are_closed_there():
    labels = np.ones((4, 5, 6), np.uint8)
    surface = meshes.build_surfaces(level_of(labels), [1], block=(2, 2, 2))[1]
    assert_closed(surface)
    assert surface.euler == 2 and surface.volume > 0
    np.testing.assert_allclose(surface.vertices.min(0), -0.5 * np.array(VOXEL))


def test_the_origin_of_a_level_moves_its_surface():
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[1, 1, 1] = 1
    at = (1000.0, -20.0, 3.0)
    surface = meshes.build_surfaces(level_of(labels, origin_nm=at), [1])[1]
    np.testing.assert_allclose(surface.vertices.mean(0), np.array(VOXEL) + at)
    assert len(surface.faces) == 8


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_counts_agree_with_surfaces_and_with_brute_force(dtype):
    labels = noise().astype(dtype)
    level = level_of(labels)
    counts = meshes.count_triangles(level, (2, 1, 9), block=(4, 5, 6))
    surfaces = meshes.build_surfaces(level, (2, 1, 9))
    assert list(surfaces) == [2, 1] and counts[9] == 0
    for number in (1, 2):
        padded = np.pad(labels == number, 1).astype(np.int8)
        bare = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in range(3))
        assert counts[number] == 2 * bare
        assert len(surfaces[number].vertices) == bare
        # In noise, handles and single voxels: what they add and take is small beside the whole.
        assert len(surfaces[number].faces) == pytest.approx(counts[number], rel=0.3)
    one = level_of(ball(100.0, (5, 5, 5), (50,) * 3), voxel_nm=(5, 5, 5))
    count = meshes.count_triangles(one, [1])[1]
    assert len(meshes.build_surfaces(one, [1])[1].faces) == count - 4


def test_large_ids_of_objects_are_found():
    labels = np.zeros((6, 6, 6), np.uint32)
    labels[1:3, 1:3, 1:3] = 4_000_000_000
    labels[4, 4, 4] = 17
    surfaces = meshes.build_surfaces(level_of(labels), (17, 4_000_000_000), block=(2, 3, 4))
    assert [len(surfaces[n].vertices) for n in (17, 4_000_000_000)] == [6, 24]


def test_only_a_block_is_read_at_a_time():
    labels = noise((20, 20, 20))
    sizes = []

    def read(box):
        sizes.append(labels[box].size)
        return labels[box]

    level = Level(LazyArray(labels.shape, labels.dtype, read), VOXEL)
    meshes.build_surfaces(level, [1], block=(5, 6, 7))
    assert max(sizes) <= 6 * 7 * 8
    sizes.clear()
    meshes.count_triangles(level, [1], block=(5, 6, 7))
    assert max(sizes) <= 6 * 7 * 8


def levels_of(labels, voxel_nm=(10.0, 10.0, 10.0)):
    array = LazyArray(labels.shape, labels.dtype, lambda box: labels[box])
    return thinned(Volume(array, voxel_nm, "labels"))


def test_the_finest_level_within_the_budget_is_chosen():
    levels = levels_of(ball(500.0, (10, 10, 10), (140, 140, 140)))
    totals = [meshes.count_triangles(level, [1])[1] for level in levels]
    assert len(totals) == 3 and totals[0] > totals[1] > totals[2]
    for index, total in enumerate(totals):
        assert meshes.choose_level(levels, [1], budget=total) == (index, {1: total})
    assert meshes.choose_level(levels, [1], budget=10**9, level=2)[0] == 2
    with pytest.raises(ValueError, match=rf"level 2 are {totals[2]:,} triangles.*budget is 5"):
        meshes.choose_level(levels, [1], budget=5)
    with pytest.raises(ValueError, match=rf"level 0 are {totals[0]:,} triangles"):
        meshes.choose_level(levels, [1], budget=totals[1], level=0)
    with pytest.raises(ValueError, match=r"level 3 is none of the 3 levels 0\.\.2"):
        meshes.choose_level(levels, [1], budget=5, level=3)


def test_thinned_levels_are_where_their_voxels_were():
    labels = noise((8, 130, 140))
    levels = levels_of(labels, voxel_nm=(50.0, 10.0, 10.0))
    assert [level.voxel_nm for level in levels] == [(50, 10, 10), (50, 20, 20), (50, 40, 40)]
    np.testing.assert_array_equal(levels[2].array[...], labels[:, ::4, ::4])
    np.testing.assert_array_equal(levels[1].array[3:5, 2:9, -1], labels[3:5, 4:18:2, 138])


def test_bad_options_are_named():
    level = level_of(noise())
    with pytest.raises(ValueError, match="each once"):
        meshes.build_surfaces(level, [1, 1])
    surface = meshes.build_surfaces(level, [1])[1]
    with pytest.raises(ValueError, match="iterations is -1"):
        meshes.smooth(surface, iterations=-1)
    far = Level(LazyArray((2, 2, 2**20), np.uint8, lambda box: None), VOXEL)
    with pytest.raises(ValueError, match="voxels along an axis"):
        meshes.build_surfaces(far, [1])


def test_smoothing_without_iterations_changes_nothing():
    surface = meshes.build_surfaces(level_of(noise()), [1])[1]
    np.testing.assert_array_equal(meshes.smooth(surface, iterations=0).vertices, surface.vertices)


def test_every_pair_of_voxels_is_a_manifold():
    for pattern in itertools.product((0, 1), repeat=8):
        labels = np.array(pattern, np.uint8).reshape(2, 2, 2)
        for surface in meshes.build_surfaces(level_of(labels), [1]).values():
            assert_closed(surface)
            assert surface.volume > 0


def written_surfaces():
    labels = np.zeros((9, 12, 14), np.uint8)
    labels[1:5, 2:8, 3:11] = 1
    labels[6:8, 8:11, 2:6] = 2
    found = meshes.build_surfaces(level_of(labels, origin_nm=(500.0, 70.0, 30.0)), (1, 2))
    return {"cell": found[1], "mitochondrion": found[2]}


@pytest.mark.parametrize(("unit", "nanometres"), [("um", 1000.0), ("nm", 1.0)])
def test_a_glb_has_every_surface_by_name_colour_and_place(tmp_path, unit, nanometres):
    trimesh = pytest.importorskip("trimesh", reason="mesh files need trimesh")
    surfaces = written_surfaces()
    path = meshes.write_glb(
        surfaces, tmp_path / "a/all.glb", colours={"cell": "#9BA3AD"}, unit=unit
    )
    scene = trimesh.load(path)
    assert set(scene.geometry) == set(surfaces)
    assert scene.metadata["unit"] == unit and scene.metadata["axes"].startswith("x, y, z")
    for name, surface in surfaces.items():
        mesh = scene.geometry[name]
        # glTF holds single precision.
        np.testing.assert_allclose(
            np.sort(mesh.vertices * nanometres, axis=0),
            np.sort(surface.vertices[:, ::-1], axis=0),
            rtol=1e-6,
        )
        assert mesh.is_watertight and mesh.is_winding_consistent
        assert mesh.volume * nanometres**3 == pytest.approx(surface.volume, rel=1e-5)
        assert mesh.area * nanometres**2 == pytest.approx(surface.area, rel=1e-5)
    assert scene.geometry["cell"].visual.material.baseColorFactor.tolist() == [155, 163, 173, 255]


def test_a_ply_opens_again_and_says_its_unit(tmp_path):
    trimesh = pytest.importorskip("trimesh", reason="mesh files need trimesh")
    surface = written_surfaces()["mitochondrion"]
    path = meshes.write_ply(surface, tmp_path / "m.ply", colour="#0072B2")
    head = path.read_bytes().split(b"end_header")[0].decode()
    assert "comment unit um\n" in head and "comment axes x, y, z" in head
    mesh = trimesh.load(path)
    assert mesh.is_watertight
    assert mesh.volume * 1e9 == pytest.approx(surface.volume, rel=1e-5)
    assert mesh.visual.vertex_colors[0].tolist() == [0, 114, 178, 255]
    assert not list(tmp_path.glob("*.partial"))


def test_names_and_absent_libraries_are_said(tmp_path, monkeypatch):
    surface = written_surfaces()["cell"]
    with pytest.raises(ValueError, match=r"expected it to end in \.glb"):
        meshes.write_glb({"cell": surface}, tmp_path / "a.ply")
    with pytest.raises(ValueError, match="no surface"):
        meshes.write_glb({}, tmp_path / "a.glb")
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ModuleNotFoundError, match=r"densejax\[render\]"):
        meshes.write_ply(surface, tmp_path / "a.ply")
