"""Test-time augmentation against all symmetries in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.inference.members import _average_views, view_count

RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(3, 4, 4, 3, 4, 4, 2)).astype(np.float32)


def image(shape=(3, 4, 4), seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def anything(window):
    """A function of a window without any symmetry: every voxel answers to every other."""
    return jax.nn.softmax(jnp.einsum("zyx,zyxabcd->abcd", window, MATRIX), axis=-1)


def symmetries(views):
    """Each view of a block and the way back, for arrays [z, y, x, ...]."""

    def view(axes, turned):
        def there(block):
            block = np.swapaxes(block, 1, 2) if turned else block
            return np.flip(block, axes)

        def back(block):
            block = np.flip(block, axes)
            return np.swapaxes(block, 1, 2) if turned else block

        return there, back

    if views == "one":
        return [view((), False)]
    if views == "flips":
        subsets = itertools.product((0, 1), repeat=3)
        return [view(tuple(a for a in range(3) if code[a]), False) for code in subsets]
    return [view(axes, turned) for axes in ((), (1,), (2,), (1, 2)) for turned in (False, True)]


@pytest.mark.parametrize(("views", "count"), [("one", 1), ("flips", 8), ("turns", 8)])
def test_the_average_is_that_of_all_views_one_by_one(views, count):
    assert view_count(views) == len(symmetries(views)) == count
    given = image()
    answers = [back(np.asarray(anything(there(given)))) for there, back in symmetries(views)]
    found = jax.jit(lambda x: _average_views(anything, x, views=views))(given)
    assert found.shape == (3, 4, 4, 2) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.mean(answers, axis=0), rtol=1e-5, atol=1e-6)
    if count > 1:
        assert np.abs(found - answers[0]).max() > 0.1


def test_the_turns_are_the_symmetries_of_a_square():
    """Quarter turns by ``rot90``, with and without a reflection: eight views, none twice."""
    square = np.arange(16).reshape(1, 4, 4)
    expected = {
        np.rot90(block, turns, (1, 2)).tobytes()
        for block in (square, square[:, ::-1])
        for turns in range(4)
    }
    seen = []

    def watch(window):
        jax.debug.callback(lambda w: seen.append(np.asarray(w)), window)
        return window[..., None].astype(jnp.float32)

    _average_views(watch, square, views="turns")
    jax.effects_barrier()
    assert {one.astype(square.dtype).tobytes() for one in seen} == expected and len(expected) == 8


@pytest.mark.parametrize("views", ["flips", "turns"])
def test_a_function_that_turns_with_its_window_is_left_as_it_is(views):
    def smoothed(window):
        padded = jnp.pad(window, 1)
        near = sum(
            padded[1 + a : 4 + a, 1 + b : 5 + b, 1 + c : 5 + c]
            for a, b, c in itertools.product((-1, 0, 1), repeat=3)
        )
        return jnp.stack([near, window**2], axis=-1)

    given = image()
    found = _average_views(smoothed, given, views=views)
    np.testing.assert_allclose(found, smoothed(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("views", ["flips", "turns"])
def test_answers_may_be_smaller_than_their_windows(views):
    def middle(window):
        return anything(window)[1:2, 1:-1, 1:-1]

    given = image()
    answers = [back(np.asarray(middle(there(given)))) for there, back in symmetries(views)]
    found = _average_views(middle, given, views=views)
    np.testing.assert_allclose(found, np.mean(answers, axis=0), rtol=1e-5, atol=1e-6)


def test_names_and_oblong_windows_are_refused():
    with pytest.raises(ValueError, match=r"'rotations'; expected one of one, flips, turns"):
        view_count("rotations")
    with pytest.raises(ValueError, match="'all'"):
        _average_views(anything, image(), views="all")
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        _average_views(lambda x: x[..., None], image((2, 3, 4)), views="turns")
    oblong = image((2, 3, 4))
    found = _average_views(lambda x: x[..., None], oblong, views="flips")
    np.testing.assert_allclose(found[..., 0], oblong, rtol=1e-6)
