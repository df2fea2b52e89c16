"""Where windows start, and what they contain, against brute force in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.data.windows import (
    check_windows,
    cut_window,
    epoch_of_step,
    evaluation_corners,
    grid_bins,
    input_tile,
    margins,
    reflect_index,
    window_corner,
)

GRID = {"volume_shape": (7, 23, 19), "output_window": (3, 8, 9), "spacing": (2, 5, 4)}


def _bins_of(corners):
    return [tuple(c // s for c, s in zip(c, GRID["spacing"], strict=True)) for c in corners]


def test_published_numbers_of_windows():
    # 50 - 5 + 1 = 46 -> 23 bins of 2; 800 - 296 + 1 = 505 -> 6 bins of 100.
    assert grid_bins((50, 800, 800), (5, 296, 296), (2, 100, 100)) == (23, 6, 6)
    assert 40 * 23 * 6 * 6 == 33120
    # The U-Net: 50 sections; 800 - 388 + 1 = 413 -> 6 bins of 80.
    assert grid_bins((50, 800, 800), (1, 388, 388), (1, 80, 80)) == (50, 6, 6)


def test_every_bin_once_an_epoch_and_corners_inside():
    # usable 5, 16, 11 -> 3, 4, 3 bins, the last one shorter on every axis.
    assert grid_bins(GRID["volume_shape"], GRID["output_window"], GRID["spacing"]) == (3, 4, 3)
    n = 36
    draw = jax.jit(jax.vmap(lambda s: window_corner(jax.random.key(3), step=s, **GRID)))
    corners = np.asarray(draw(jnp.arange(3 * n)))
    assert corners.dtype == np.int32
    assert (corners >= 0).all() and (corners <= np.array([4, 15, 10])).all()
    everything = set(np.ndindex(3, 4, 3))
    epochs = [_bins_of(corners[e * n : (e + 1) * n].tolist()) for e in range(3)]
    for bins in epochs:
        assert len(bins) == n and set(bins) == everything
    assert epochs[0] != epochs[1] != epochs[2]
    assert not np.array_equal(np.sort(corners[:n], 0), np.sort(corners[n : 2 * n], 0))
    epoch = jax.vmap(lambda s: epoch_of_step(s, **GRID))(jnp.arange(3 * n))
    np.testing.assert_array_equal(epoch, np.repeat(np.arange(3), n))


def test_jitter_is_uniform_in_its_bin():
    one = {"volume_shape": (1, 1, 7), "output_window": (1, 1, 1), "spacing": (1, 1, 7)}
    draw = jax.jit(jax.vmap(lambda s: window_corner(jax.random.key(0), step=s, **one)))
    counts = np.bincount(np.asarray(draw(jnp.arange(7000)))[:, 2], minlength=7)
    # Seven binomial counts of mean 1000 and standard deviation 29.
    assert np.abs(counts - 1000).max() < 5 * 29


def test_corner_is_a_function_of_key_and_step_in_every_mode():
    steps = jnp.arange(5)
    keys = jax.random.split(jax.random.key(1), 5)
    plain = np.stack(
        [window_corner(k, step=int(s), **GRID) for k, s in zip(keys, steps, strict=True)]
    )

    def draw(k, s):
        return window_corner(k, step=s, **GRID)

    np.testing.assert_array_equal(
        plain, np.stack([jax.jit(draw)(k, s) for k, s in zip(keys, steps, strict=True)])
    )
    np.testing.assert_array_equal(plain, jax.vmap(draw)(keys, steps))
    np.testing.assert_array_equal(plain, jax.lax.map(lambda a: draw(*a), (keys, steps)))


@pytest.mark.parametrize("as_released", [True, False])
def test_reflected_index_by_hand(as_released):
    found = reflect_index(jnp.arange(-3, 8), 5, as_released=as_released)
    high = [4, 3, 2] if as_released else [3, 2, 1]
    np.testing.assert_array_equal(found, [3, 2, 1, 0, 1, 2, 3, 4, *high])


def _reference_cut(volume, corner, size, output, as_released):
    for axis in range(3):
        start = corner[axis] - int((size[axis] - output[axis]) / 2)
        v = volume.shape[axis]
        picked = []
        for i in range(start, start + size[axis]):
            if i < 0:
                i = -i
            elif i >= v:
                i = v - 1 - (i - v) if as_released else v - 2 - (i - v)
            picked.append(i)
        volume = np.take(volume, picked, axis)
    return volume


@pytest.mark.parametrize("as_released", [True, False])
@pytest.mark.parametrize("size", [(3, 8, 9), (4, 11, 9), (5, 14, 17), (3, 26, 21)])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_cut_against_brute_force_at_every_kind_of_corner(as_released, size, channels):
    volume = np.random.default_rng(0).normal(size=(7, 23, 19, *channels)).astype(np.float32)
    output = (3, 8, 9)
    cut = jax.jit(
        lambda c: cut_window(volume, c, size, output_window=output, as_released=as_released)
    )
    for corner in [(0, 0, 0), (4, 15, 10), (0, 15, 5), (2, 7, 4), (3, 1, 9)]:
        expected = _reference_cut(volume, corner, size, output, as_released)
        np.testing.assert_array_equal(cut(jnp.asarray(corner)), expected)


def test_cut_modes_agree_and_keep_the_dtype():
    volume = np.arange(7 * 9 * 8, dtype=np.int32).reshape(7, 9, 8)
    corners = jnp.asarray([[0, 0, 0], [4, 3, 4], [2, 1, 2]])

    def cut(c):
        return cut_window(volume, c, (3, 8, 6), output_window=(3, 6, 4))

    plain = np.stack([cut(c) for c in corners])
    assert plain.dtype == np.int32
    np.testing.assert_array_equal(plain, jax.vmap(cut)(corners))
    np.testing.assert_array_equal(plain, jax.lax.map(cut, corners))


def test_evaluation_corners_cover_and_end_flush():
    # 24 sections of 5: 0 5 10 15 19; 800 of 296: 0 296 504 (the published 45 windows).
    corners = evaluation_corners((24, 800, 800), (5, 296, 296), (0, 0, 0))
    assert corners.shape == (45, 3) and corners.dtype == np.int32
    assert sorted(set(corners[:, 0].tolist())) == [0, 5, 10, 15, 19]
    assert sorted(set(corners[:, 1].tolist())) == [0, 296, 504]
    for shape, window, overlap in [
        ((7, 23, 19), (3, 8, 9), (1, 2, 3)),
        ((4, 8, 9), (4, 8, 3), (0, 0, 0)),
    ]:
        corners = evaluation_corners(shape, window, overlap)
        assert len(np.unique(corners, axis=0)) == len(corners)
        covered = np.zeros(shape, int)
        for z, y, x in corners:
            covered[z : z + window[0], y : y + window[1], x : x + window[2]] += 1
        assert covered.min() >= 1
        assert (corners.max(0) == np.array(shape) - window).all()


def test_margins_of_the_published_networks():
    assert margins((5, 300, 300), (5, 296, 296)) == ((0, 0), (2, 2), (2, 2))
    assert margins((1, 572, 572), (1, 388, 388)) == ((0, 0), (92, 92), (92, 92))


def test_errors_name_both_shapes():
    with pytest.raises(ValueError, match=r"\(5, 296, 296\).*\(4, 800, 800\)"):
        grid_bins((4, 800, 800), (5, 296, 296), (2, 100, 100))
    with pytest.raises(ValueError, match="spacing"):
        grid_bins((8, 8, 8), (2, 2, 2), (0, 1, 1))
    with pytest.raises(ValueError, match=r"\(5, 4, 4\).*\(3, 9, 9\)"):
        cut_window(np.zeros((3, 9, 9)), jnp.zeros(3, jnp.int32), (5, 4, 4))
    with pytest.raises(ValueError, match="smaller than the output"):
        check_windows((9, 9, 9), (3, 3, 3), (4, 3, 3))
    with pytest.raises(ValueError, match="mirrored once"):
        check_windows((3, 9, 9), (9, 3, 3), (3, 3, 3))
    with pytest.raises(ValueError, match="overlap"):
        evaluation_corners((9, 9, 9), (3, 3, 3), (3, 0, 0))
    with pytest.raises(ValueError, match="expected"):
        cut_window(np.zeros((9, 9)), jnp.zeros(3, jnp.int32), (3, 3, 3))


def test_a_tile_that_hangs_over_is_mirrored_as_released():
    volume = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    # The low side leaves the edge voxel out, the high side repeats it.
    found = input_tile(volume, np.array([0, 0, 0]), (1, 1, 5), (1, 1, 9))
    np.testing.assert_array_equal(found[0, 0], [2, 1, 0, 1, 2, 3, 4, 4, 3])
