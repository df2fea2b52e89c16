"""Windows drawn by class: every class seen, each as often, and nothing but key and step decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.data.sampling import CANDIDATES, MOST_VOXELS, Sampling, class_table, sampled_corner

SHAPE, WINDOW = (4, 20, 24), (2, 5, 6)


def labels_of(*, rare=3):
    """Mostly class 0, a stripe of class 1, a few voxels of class 2 at corners, some unlabelled."""
    labels = np.zeros(SHAPE, np.int32)
    labels[:, :, 10:12] = 1
    labels[:, :, -3:] = -1
    places = [(0, 0, 0), (3, 19, 20), (2, 19, 0)][:rare]
    for place in places:
        labels[place] = 2
    return labels


def data_of(labels, classes):
    return {"labels": labels, **class_table(labels, classes)}


@functools.cache
def program(sampling, window, number):
    def draw(step, data):
        return sampled_corner(
            jax.random.key(0), step=step, data=data, output_window=window, sampling=sampling
        )

    return jax.jit(lambda data: jax.lax.map(lambda step: draw(step, data), jnp.arange(number)))


def corners_of(data, number, *, window=WINDOW, **options):
    """Corners of the first steps, [number, 3]."""
    return np.asarray(program(Sampling(**options), window, number)(data))


def cut(labels, corner, window=WINDOW):
    return labels[tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))]


def test_a_table_holds_places_of_each_class():
    labels = labels_of()
    table = class_table(labels, 3)
    assert table["class_voxels"].shape == (3, MOST_VOXELS, 3)
    assert table["class_voxels"].dtype == table["common"].dtype == np.int32
    assert table["common"] == 0
    for index, places in enumerate(table["class_voxels"]):
        assert np.all(labels[tuple(places.T)] == index)
    rare = {tuple(place) for place in table["class_voxels"][2].tolist()}
    assert rare == {(0, 0, 0), (3, 19, 20), (2, 19, 0)}


def test_voxels_of_a_large_class_are_chosen_evenly_and_by_the_seed():
    labels = np.zeros((2, 100, 100), np.int32)
    labels[0, 0, 0] = 1
    one, other, again = (class_table(labels, 2, seed=s)["class_voxels"] for s in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    # 8192 places uniform along y: mean 49.5, its deviation 28.9 / 90.5.
    assert np.all(np.abs(one[0].mean(0) - [0.5, 49.5, 49.5]) < 5 * np.array([0.5, 29, 29]) / 90)


def test_the_most_common_class_is_the_first_of_equals_and_ignores_what_is_not_labelled():
    labels = np.full((1, 4, 4), -1, np.int32)
    labels[0, 0, :3] = [1, 1, 0]
    assert class_table(labels, 2)["common"] == 1


def test_a_class_without_a_voxel_is_named():
    labels = labels_of(rare=0)
    with pytest.raises(ValueError, match=r"no voxel of class \[2, 3\]"):
        class_table(labels, 4)
    class_table(labels, 2)


def test_every_window_holds_a_class_where_all_are_drawn_by_class():
    labels = labels_of()
    # Nothing is labelled in most of this volume: a uniform window would often be empty.
    labels[:, 6:18] = -1
    data = data_of(labels, 3)
    corners = corners_of(data, 600, class_share=1.0)
    most = np.array(SHAPE) - WINDOW
    assert corners.dtype == np.int32 and np.all(corners >= 0) and np.all(corners <= most)
    windows = [cut(labels, corner) for corner in corners]
    assert all((window >= 0).any() for window in windows)
    # A third is drawn around class 2, whose few voxels all lie at borders.
    shown = sum((window == 2).any() for window in windows)
    assert shown >= 600 / 3 - 5 * np.sqrt(600 * 2 / 9)
    uniform = corners_of(data, 600)
    assert any((cut(labels, corner) < 0).all() for corner in uniform)
    np.testing.assert_array_equal(uniform.min(0), [0, 0, 0])
    np.testing.assert_array_equal(uniform.max(0), most)


def test_each_class_is_drawn_as_often():
    """Windows of one voxel are the voxels that were drawn."""
    labels = labels_of()
    data = data_of(labels, 3)
    corners = corners_of(data, 6000, window=(1, 1, 1), class_share=1.0)
    found = labels[tuple(corners.T)]
    counts = np.bincount(found, minlength=3)
    # Binomial counts of mean 2000 and deviation 36.5.
    assert np.all(np.abs(counts - 2000) < 5 * 37)
    # And each voxel of a class as often: three of class 2.
    rare, each = np.unique(corners[found == 2], axis=0, return_counts=True)
    assert len(rare) == 3 and np.all(np.abs(each - counts[2] / 3) < 5 * 22)


def test_the_voxel_lies_anywhere_in_its_window():
    labels = np.zeros((5, 21, 21), np.int32)
    labels[2, 10, 10] = 1
    window = (3, 7, 5)
    corners = corners_of(data_of(labels, 2), 8000, window=window, class_share=1.0)
    holds = np.array([(cut(labels, corner, window) == 1).any() for corner in corners])
    inside = (np.array([2, 10, 10]) - corners)[holds]
    # Half of the windows are around this voxel; a few others hold it by chance.
    assert len(inside) > 3800
    for axis, size in enumerate(window):
        counts = np.bincount(inside[:, axis], minlength=size)
        expected = len(inside) / size
        assert len(counts) == size and np.all(np.abs(counts - expected) < 6 * np.sqrt(expected))


def test_a_share_of_windows_is_drawn_by_class():
    labels = np.zeros((1, 1, 400), np.int32)
    labels[0, 0, 200] = 1
    number = 6000
    corners = corners_of(data_of(labels, 2), number, window=(1, 1, 1), class_share=0.4)
    around = (corners[:, 2] == 200).sum()
    # 0.4 / 2 of the windows, and one in 400 of the others by chance.
    expected = number * (0.2 + 0.8 / 400)
    assert abs(around - expected) < 5 * np.sqrt(expected)


def row(**places):
    """Ten voxels of class 0, and what else is at the places that are named by its label."""
    labels = np.zeros((1, 1, 10), np.int32)
    for label, where in places.items():
        labels[0, 0, list(where)] = {"one": 1, "unlabelled": -1}[label]
    return labels


ROW = {"number": 8000, "window": (1, 1, 1)}


def test_without_a_share_corners_are_uniform():
    corners = corners_of(data_of(row(one=[3]), 2), **ROW)
    counts = np.bincount(corners[:, 2], minlength=10)
    # Ten binomial counts of mean 800 and standard deviation 27.
    assert np.abs(counts - 800).max() < 5 * 27


@pytest.mark.parametrize("reject", [0.0, 0.5, 1.0])
def test_windows_that_show_nothing_are_drawn_again(reject):
    labels, share = row(one=[4, 6], unlabelled=[5]), 0.2
    corners = corners_of(data_of(labels, 2), reject_empty=reject, **ROW)
    shown = (labels[0, 0, corners[:, 2]] == 1).sum()
    # Two of ten places show something; with a rejection, one of all candidates has to.
    chance = (1 - reject) * share + reject * (1 - (1 - share) ** CANDIDATES)
    assert abs(shown - 8000 * chance) < 5 * np.sqrt(8000 * chance * (1 - chance))


def test_where_nothing_is_to_be_seen_a_window_is_drawn_all_the_same():
    data = data_of(row(one=[9]), 2) | {"labels": row(unlabelled=[9])}
    counts = np.bincount(corners_of(data, reject_empty=1.0, **ROW)[:, 2], minlength=10)
    assert np.abs(counts - 800).max() < 5 * 27


def test_a_corner_is_a_function_of_key_and_step_in_every_mode():
    data = jax.tree.map(jnp.asarray, data_of(labels_of(), 3))
    sampling = Sampling(class_share=0.5, reject_empty=0.5)
    keys, steps = jax.random.split(jax.random.key(1), 8), jnp.arange(8)

    def draw(key, step):
        return sampled_corner(key, step=step, data=data, output_window=WINDOW, sampling=sampling)

    mapped = jax.jit(jax.vmap(draw))(keys, steps)
    looped = jax.jit(lambda keys, steps: jax.lax.map(lambda a: draw(*a), (keys, steps)))
    np.testing.assert_array_equal(mapped, looped(keys, steps))
    # Of one key, and in another order.
    one = np.asarray(looped(keys[jnp.zeros(8, int)], steps))
    np.testing.assert_array_equal(one[0], mapped[0])
    np.testing.assert_array_equal(one[::-1], looped(keys[jnp.zeros(8, int)], steps[::-1]))
    other = np.asarray(looped(keys[jnp.ones(8, int)], steps))
    assert len(np.unique(np.concatenate([one, other]), axis=0)) > 12


def test_shares_are_checked_and_windows_have_to_fit():
    for name in ("class_share", "reject_empty"):
        for value in (-0.1, 1.1):
            with pytest.raises(ValueError, match=f"{name} is {value}"):
                Sampling(**{name: value})
    with pytest.raises(ValueError, match=r"\(5, 5, 5\).*\(4, 20, 24\)"):
        sampled_corner(
            jax.random.key(0),
            step=0,
            data=data_of(labels_of(), 3),
            output_window=(5, 5, 5),
            sampling=Sampling(),
        )
