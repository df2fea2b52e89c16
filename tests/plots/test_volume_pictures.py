"""Pictures of volumes: true proportions, the right colours, nothing read that is not drawn."""

import importlib.util
import itertools
import sys

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from densejax.data.formats import LazyArray
from densejax.plots import overlays, scenes, style
from densejax.segmentation.rendering.subjects import counts_along, informative_sections

NAMES = ("background", "cell", "mitochondrion")
VOXEL = (50.0, 10.0, 10.0)
needs_vtk = pytest.mark.skipif(bool(scenes.why_not()), reason=scenes.why_not())


def world(shape=(12, 60, 80)):
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    labels[2:10, 10:50, 10:70] = 1
    labels[4:7, 20:40, 40:60] = 2
    return (90 * labels + rng.integers(0, 60, shape)).astype(np.uint8), labels


def lazy(array, reads):
    def read(box):
        reads.append(array[box].size)
        return array[box]

    return LazyArray(array.shape, array.dtype, read)


def cube(low, high, colour="#D55E00", opacity=1.0, name="cube"):
    """The box between two corners (z, y, x), its faces seen from outside."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)])
    ends = np.array([low, high], float)[:, ::-1]
    vertices = ends[0] + corners * (ends[1] - ends[0])
    return scenes.Body(name, vertices[:, ::-1], faces, colour, opacity)


def test_planes_are_drawn_and_nothing_else_is_read(tmp_path, assert_readable):
    image, labels = world()
    reads = []
    layer = overlays.Layer(lazy(labels, reads), class_names=NAMES)
    path = tmp_path / "o.png"
    figure = overlays.orthogonal(
        lazy(image, reads), layer, voxel_nm=VOXEL, at=(5, 30, 50), title="world", path=path
    )
    assert sum(reads) == 2 * (60 * 80 + 12 * 80 + 12 * 60)
    assert matplotlib.image.imread(path).shape[1] > 800
    assert_readable(figure, least=3)
    reads.clear()
    sections = [2, 5, 9]
    figure = overlays.montage(lazy(image, reads), layer, voxel_nm=VOXEL, sections=sections)
    assert_readable(figure)
    assert sum(reads) == 2 * 3 * 60 * 80


def test_a_large_plane_is_thinned():
    index = []

    class Large:
        shape = (3, 5000, 3000)

        def __getitem__(self, asked):
            index.append(asked)
            return np.zeros((1250, 1000), np.uint8)

    overlays._plane(Large(), 0, 1)
    assert index == [(1, slice(None, None, 4), slice(None, None, 3))]


def test_colours_are_the_houses_and_the_background_lies_bare():
    image = np.full((2, 4), 100, np.uint8)
    labels = np.array([[0, 1, 2, 255], [0, 1, 2, -1]])
    shown = overlays.tinted(image, labels, 3, grey=(0.0, 200.0), strength=0.5)
    np.testing.assert_allclose(shown[0, 0], 0.5)
    blue = np.array(matplotlib.colors.to_rgb(style.CLASS_COLOURS[2]))
    np.testing.assert_allclose(shown[0, 2], 0.5 * 0.5 + 0.5 * blue, rtol=1e-6)
    # Not labelled: washed out, whichever number says so.
    assert (shown[0, 3] > 0.7).all()
    np.testing.assert_array_equal(shown[0, 3], shown[1, 3])
    alone = overlays.tinted(None, labels, 3, grey=(0.0, 1.0))
    np.testing.assert_allclose(alone[0, 2], blue)


def test_pictures_without_an_image_and_of_heat_are_drawn(assert_readable):
    _, labels = world()
    layer = overlays.Layer(labels, class_names=NAMES)
    bare = overlays.orthogonal(None, layer, voxel_nm=VOXEL, at=(5, 30, 50))
    heat = overlays.Layer(heat=labels * 100, heat_name="entropy", heat_most=255)
    hot = overlays.orthogonal(None, heat, voxel_nm=VOXEL, at=(5, 30, 50))
    assert_readable(bare, least=2)
    assert_readable(hot)


def test_bad_planes_and_shapes_are_named(tmp_path):
    image, labels = world()
    layer = overlays.Layer(labels, class_names=NAMES)
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"at is \(12, 0, 0\).*\(12, 60, 80\)"):
        overlays.orthogonal(image, layer, path=path, voxel_nm=VOXEL, at=(12, 0, 0))
    with pytest.raises(ValueError, match="expected one shape"):
        overlays.orthogonal(image[1:], layer, path=path, voxel_nm=VOXEL, at=(0, 0, 0))
    with pytest.raises(ValueError, match="three positive"):
        overlays.montage(image, layer, path=path, voxel_nm=(50, 0, 10), sections=[1])
    with pytest.raises(ValueError, match=r"sections are \[12\]"):
        overlays.montage(image, layer, path=path, voxel_nm=VOXEL, sections=[12])


def test_informative_sections_show_every_class():
    labels = np.zeros((30, 8, 8), np.uint8)
    labels[2:20] = 1
    labels[7, :2] = 2
    labels[25, :3] = 3
    counts = counts_along(labels, 4, 0)
    np.testing.assert_array_equal(counts.sum(0), np.bincount(labels.ravel(), minlength=4))
    assert informative_sections(counts) in ([7], [25])
    four = informative_sections(counts, number=4)
    assert {7, 25} <= set(four) and all(z // 8 == i for i, z in enumerate(four[:2]))
    assert informative_sections(counts, number=99) == list(range(30))
    # Where nothing is to be seen, the middle.
    assert informative_sections(np.eye(1, 4)[[0] * 9]) == [4]
    assert counts_along(np.full((2, 2, 2), 255), 4, 1).tolist() == [[0] * 4] * 2


def shadow(picture):
    """Rows and columns that a coloured body covers, and its share of the picture."""
    pixels = picture.astype(int)
    covered = np.ptp(pixels, axis=2) > 40
    rows, columns = np.where(covered.any(1))[0], np.where(covered.any(0))[0]
    return rows, columns


def images(bodies, view, azimuths):
    scene = scenes.Scene(bodies, view)
    found = [scene.image(azimuth).astype(int) for azimuth in azimuths]
    scene.close()
    return found


@needs_vtk
def test_a_body_lies_where_the_projection_puts_it():
    # Deeper sections are lower, larger x is to the right; seen along y from in front.
    body = cube((0, 0, 600), (200, 100, 900))
    view = scenes.View((0, 0, 0), (400, 100, 1000), (300, 200), elevation=0.0)
    rows, columns = shadow(*images([body], view, [0.0]))
    pixel = view.pixel_nm
    x = (np.array([600, 900]) - 500) / pixel + 150
    z = (np.array([0, 200]) - 200) / pixel + 100
    assert [columns[0], columns[-1] + 1] == pytest.approx(x, abs=2)
    assert [rows[0], rows[-1] + 1] == pytest.approx(z, abs=2)


@needs_vtk
def test_shadows_are_the_parallel_projection_of_the_bodies():
    bodies = [cube((0, 0, 0), (300, 200, 400)), cube((100, 300, 300), (300, 500, 700), "#0072B2")]
    view = scenes.View((0, 0, 0), (400, 600, 800), (240, 180))
    for azimuth, picture in zip((30, 200), images(bodies, view, (30, 200)), strict=True):
        around, over = np.radians([azimuth, view.elevation])
        # Turn about the upright axis, then tilt towards the eye; worked out from x, -y, -z.
        x, y, z = np.concatenate([one.vertices for one in bodies])[:, ::-1].T
        x, y, z = x - 400, 300 - y, 200 - z
        right = x * np.cos(around) + y * np.sin(around)
        behind = y * np.cos(around) - x * np.sin(around)
        up = z * np.cos(over) + behind * np.sin(over)
        rows, columns = shadow(picture)
        across = right / view.pixel_nm + 120
        down = 90 - up / view.pixel_nm
        assert [columns[0], columns[-1] + 1] == pytest.approx([across.min(), across.max()], abs=2)
        assert [rows[0], rows[-1] + 1] == pytest.approx([down.min(), down.max()], abs=2)


@needs_vtk
def test_a_near_body_hides_a_far_one_and_a_veil_does_not():
    far = cube((100, 500, 300), (300, 600, 500), "#0072B2")
    view = scenes.View((0, 0, 0), (400, 600, 800), (160, 120), elevation=10.0)
    blue = {}
    for opacity in (1.0, 0.15):
        near = cube((0, 0, 0), (400, 100, 800), "#D55E00", opacity)
        for azimuth, picture in zip((0.0, 180.0), images([far, near], view, (0, 180)), strict=True):
            blue[opacity, azimuth] = np.sum(picture[..., 2] - picture[..., 0] > 30)
    front = max((1.0, 0.0), (1.0, 180.0), key=blue.get)
    back = (1.0, 180.0 - front[1])
    assert blue[back] < 0.2 * blue[front]
    assert blue[0.15, back[1]] > 0.5 * blue[front]


def test_named_edges_are_the_boxs_own_and_lie_outside():
    view = scenes.View((0, 0, 0), (400, 600, 800), (240, 180))
    for azimuth in (0.0, 32.0, 145.0, 290.0):
        towards, up = scenes._eye(azimuth, view.elevation)
        right = np.cross(up, towards)
        places = np.array([*itertools.product((-400, 400), (-300, 300), (-200, 200))])
        seen = places @ np.stack([right, up], 1) / view.pixel_nm + [120, 90]
        for axis, ends in enumerate(view.edges(azimuth)):
            one, other = (int(np.argmin(np.linalg.norm(seen - end, axis=1))) for end in ends)
            np.testing.assert_allclose(ends, seen[[one, other]], atol=1e-9)
            assert np.flatnonzero(places[one] != places[other]).tolist() == [axis]
            # No corner of the box lies farther out than this edge: lower, or more to the left.
            side = int(axis < 2)
            assert ends[:, side].mean() < seen[:, side].mean()


def test_turning_is_not_mirroring():
    points = np.random.default_rng(0).normal(size=(3, 3))
    # z, y, x in a left-handed order of names; x, y, z as vectors: the same handedness.
    assert np.linalg.det(scenes.turned(points)) == pytest.approx(np.linalg.det(points[:, ::-1]))


@needs_vtk
def test_a_picture_and_a_turn_have_legend_axes_and_frames(tmp_path, assert_readable):
    bodies = [cube((0, 0, 0), (300, 200, 400)), cube((0, 300, 300), (300, 500, 700), "#0072B2")]
    options = {"corners_nm": [[0, 0, 0], [400, 600, 800]]}
    path = tmp_path / "p.png"
    figure = scenes.picture(bodies, title="two", path=path, **options)
    assert_readable(figure, least=2)
    said = {text.get_text() for text in figure.axes[0].texts}
    assert {"x  0.8 µm", "y  0.6 µm", "z  0.4 µm", "200 nm"} <= said
    assert matplotlib.image.imread(path).shape[1] == round(scenes.WIDTH * style.DPI)
    film = scenes.turntable(bodies, tmp_path / "t.gif", frames=4, seconds=1, **options)
    with Image.open(film) as turning:
        assert turning.n_frames == 4


def test_no_body_and_no_pyvista_are_refused(tmp_path, monkeypatch):
    options = {"corners_nm": [[0, 0, 0], [400, 600, 800]], "path": tmp_path / "p.png"}
    with pytest.raises(ValueError, match="no body"):
        scenes.picture([], **options)
    scenes.why_not.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'densejax\[render\]'"):
        scenes.picture([cube((0, 0, 0), (1, 1, 1))], **options)
    scenes.why_not.cache_clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("pyvista") is None, reason="pyvista is not installed")
def test_a_driver_that_kills_its_process_is_survived(monkeypatch, tmp_path):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho 'bad X server connection' >&2\nkill -SEGV $$\n")
    stub.chmod(0o755)
    scenes.why_not.cache_clear()
    monkeypatch.setattr(sys, "executable", str(stub))
    why = scenes.why_not()
    assert "libEGL or libOSMesa" in why and "bad X server" in why
    scenes.why_not.cache_clear()
