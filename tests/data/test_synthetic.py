"""The synthetic platelet world: determinism, class shares, geometry, and difficulty."""

import jax
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import jaccard_score

from densejax.data.synthetic import CLASS_NAMES, CLASS_SHARES, platelet_world

SMALL = (12, 160, 160)


@pytest.fixture(scope="module")
def world():
    return platelet_world(jax.random.key(3), shape=(16, 192, 192))


def _shares(labels):
    return np.bincount(labels.ravel(), minlength=7) / labels.size


def test_types_and_shapes(world):
    assert world.images.shape == world.labels.shape == (16, 192, 192)
    assert world.images.dtype == np.uint8
    assert world.labels.dtype == np.int32
    assert world.voxel_nm == (50.0, 10.0, 10.0)
    assert world.class_names == CLASS_NAMES
    assert set(np.unique(world.labels)) == set(range(7))


def test_same_key_same_bits_and_different_key_differs(world):
    again = platelet_world(jax.random.key(3), shape=(16, 192, 192))
    raw = platelet_world(jax.random.PRNGKey(3), shape=(16, 192, 192))
    other = platelet_world(jax.random.key(4), shape=(16, 192, 192))
    for same in (again, raw):
        np.testing.assert_array_equal(world.images, same.images)
        np.testing.assert_array_equal(world.labels, same.labels)
    assert np.mean(world.labels != other.labels) > 0.1
    assert np.mean(world.images != other.images) > 0.5


@pytest.mark.parametrize("seed", range(6))
def test_shares_are_near_the_published(seed):
    world = platelet_world(jax.random.key(seed), shape=SMALL)
    ratio = _shares(world.labels) / np.array(CLASS_SHARES)
    assert np.all(ratio > 0.5), ratio
    assert np.all(ratio < 2.0), ratio


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(6, 48, 48), (8, 64, 96)])
def test_every_class_is_in_the_smallest_worlds(seed, shape):
    labels = platelet_world(jax.random.key(seed), shape=shape).labels
    assert set(np.unique(labels)) == set(range(7))


def test_published_shares_match_the_real_labels(platelet_labels):
    np.testing.assert_allclose(_shares(platelet_labels), CLASS_SHARES, rtol=0.02)


@pytest.fixture
def platelet_labels():
    import os
    from pathlib import Path

    tifffile = pytest.importorskip("tifffile")
    default = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("DENSEJAX_DATA", default)) / "platelet_data" / "train-labels.tif"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return tifffile.imread(path)


@pytest.mark.parametrize("seed", range(3))
def test_core_lies_within_body(seed):
    labels = platelet_world(jax.random.key(seed), shape=SMALL).labels
    core = labels == 6
    around = ndimage.binary_dilation(core, np.ones((3, 3, 3)))
    assert core.any()
    assert np.isin(labels[around], (5, 6)).all()


def test_organelles_lie_in_cells(world):
    organelle = world.labels >= 2
    shell = ndimage.binary_dilation(organelle, ndimage.generate_binary_structure(3, 1)) & ~organelle
    assert np.mean(world.labels[shell] == 1) > 0.9


def test_world_is_anisotropic(world):
    # A step of one plane, 50 nm, changes more labels and more grey than one of 10 nm in plane.
    change = [np.mean(np.diff(world.labels, axis=a) != 0) for a in range(3)]
    assert change[0] > 1.5 * max(change[1:])
    smooth = ndimage.gaussian_filter(world.images.astype(np.float32), (0, 2, 2))
    step = [np.mean(np.abs(np.diff(smooth, axis=a))) for a in range(3)]
    assert step[0] > 1.5 * max(step[1:])


def test_sizes_are_physical():
    # The same extent in voxels twice as wide holds organelles of about the same volume in nm^3.
    def volume(shape, voxel):
        labels = platelet_world(jax.random.key(0), shape=shape, voxel_nm=voxel).labels
        regions = ndimage.label(labels == 3)[0]
        return np.median(np.bincount(regions.ravel())[1:]) * np.prod(voxel)

    fine, coarse = volume((12, 192, 192), (50, 10, 10)), volume((12, 96, 96), (50, 20, 20))
    assert 1 / 3 < fine / coarse < 3


def test_intensity_alone_is_far_from_enough(world):
    # The best possible classifier of single grey values, fitted to the very voxels it is scored on.
    histogram = np.zeros((256, 7), np.int64)
    np.add.at(histogram, (world.images.ravel(), world.labels.ravel()), 1)
    weighted = histogram / histogram.sum(0)
    truth = world.labels.ravel()
    for table in (histogram, weighted):
        guess = table.argmax(1)[world.images].ravel()
        score = jaccard_score(truth, guess, average="macro", labels=range(7), zero_division=0)
        assert score < 0.4
    # Yet the grey carries something: plasma is told from cell.
    plasma = histogram.argmax(1)[world.images] == 0
    assert jaccard_score(truth == 0, plasma.ravel()) > 0.7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (4, 160, 160)}, "shape is"),
        ({"shape": (12, 160)}, "shape is"),
        ({"shape": (12, 160, 20)}, "shape is"),
        ({"shape": SMALL, "voxel_nm": (50, 10)}, "voxel_nm is"),
        ({"shape": SMALL, "voxel_nm": (50, 0, 10)}, "voxel_nm is"),
        ({"shape": SMALL, "voxel_nm": (50, 2, 2)}, "spans"),
        ({"shape": SMALL, "voxel_nm": (500, 10, 10)}, "at most"),
        ({"shape": SMALL, "cell_nm": 10.0}, "cell_nm is"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        platelet_world(jax.random.key(0), **options)
