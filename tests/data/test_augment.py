"""Augmentation against SciPy and brute force; alignment, determinism, and the modes of running."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from densejax.data import augment, defects, elastic, windows
from densejax.data.augment import Augmentation, draw_window, training_arrays

SHAPE, INPUT, OUTPUT, SPACING = (6, 90, 83), (3, 36, 28), (3, 32, 24), (2, 30, 30)
SIZES = {"input_window": INPUT, "output_window": OUTPUT, "spacing": SPACING}
EVERYTHING = Augmentation(
    elastic="released", missing_section=0.3, misalignment=0.5, blur=0.3, blur_sigma=0.5, noise=0.5
)


def _world():
    """Every voxel has its own label, and an image that tells the label."""
    labels = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
    return training_arrays(labels.astype(np.float32), labels, weights=labels + 0.5)


def _middle(image):
    return np.asarray(image)[:, 2:-2, 2:-2]


@pytest.mark.parametrize("how", [None, "released", "published"])
def test_image_labels_and_weights_stay_aligned(how):
    """Under corners, mirrored borders, reflections and deformation alike."""
    data = _world()
    augmentation = Augmentation(elastic=how, brightness=0.0, contrast=0.0)
    draw = jax.jit(
        lambda s: draw_window(jax.random.key(5), s, data, augmentation=augmentation, **SIZES)
    )
    seen = set()
    for step in range(72 if how is None else 16):
        image, labels, weights = draw(step)
        assert (image.shape, labels.shape, weights.shape) == (INPUT, OUTPUT, OUTPUT)
        assert (image.dtype, labels.dtype, weights.dtype) == (jnp.float32, jnp.int32, jnp.float32)
        np.testing.assert_array_equal(_middle(image), labels)
        np.testing.assert_array_equal(weights, np.asarray(labels) + 0.5)
        if how is None:
            z, y, x = np.unravel_index(np.asarray(labels), SHAPE)
            seen.add((z[1, 0, 0] > z[0, 0, 0], y[0, 1, 0] > y[0, 0, 0], x[0, 0, 1] > x[0, 0, 0]))
    assert how is not None or len(seen) == 8


def test_reflections_by_hand_and_only_of_the_named_axes():
    block = jnp.arange(24).reshape(2, 3, 4)
    for seed in range(12):
        key = jax.random.key(seed)
        flipped, other = augment.reflect_window(key, block, block * 10, axes="zx")
        candidates = [
            block[tuple(slice(None, None, s) for s in (a, 1, c))] for a in (1, -1) for c in (1, -1)
        ]
        assert any(np.array_equal(flipped, c) for c in candidates)
        np.testing.assert_array_equal(flipped * 10, other)


def test_brightness_then_contrast_within_their_bounds():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5)), jnp.float32)
    shifts, scales = [], []
    for seed in range(200):
        found = np.asarray(
            augment.adjust_intensity(
                jax.random.key(seed), image, brightness=0.12, contrast=0.2, intensity_range=10.0
            )
        )
        scale, offset = np.polyfit(np.asarray(image).ravel(), found.ravel(), 1)
        scales.append(scale)
        shifts.append(offset / scale)  # shift before scale
    for values, low, high in [(shifts, -1.2, 1.2), (scales, 0.8, 1.2)]:
        assert low - 1e-4 < min(values) < low + 0.1 * (high - low)
        assert high + 1e-4 > max(values) > high - 0.1 * (high - low)


@pytest.mark.parametrize("shape", [(800, 800), (120, 83), (70, 200)])
def test_released_elastic_map_against_scipy(shape):
    key = jax.random.key(2)
    rows, columns = jnp.arange(shape[0]), jnp.arange(shape[1])
    found = elastic.elastic_displacement(key, rows, columns, section_shape=shape, kind="released")
    grid_shape = tuple(max(2, s // 40) for s in shape)
    if shape == (800, 800):
        assert grid_shape == (20, 20)
    noise = np.asarray(jax.random.uniform(key, (2, *grid_shape), minval=-1, maxval=1), np.float64)
    for axis in range(2):
        grid = 20 * scipy.ndimage.gaussian_filter(noise[axis], 0.6, mode="reflect")
        zoom = [s / g for s, g in zip(shape, grid_shape, strict=True)]
        expected = scipy.ndimage.zoom(grid, zoom, order=3)
        # The last row and column may be rounded out of bounds by SciPy's own default mode.
        np.testing.assert_allclose(found[axis, :-1, :-1], expected[:-1, :-1], atol=1e-4)
    if shape == (800, 800):
        # Simulated from the released code: standard deviation 5.6 voxels, mean 0, at most ~15.
        assert 4.9 < float(jnp.std(found)) < 6.3 and abs(float(jnp.mean(found))) < 1
        assert float(jnp.abs(found).max()) < 20


def test_published_elastic_map_is_a_shift_by_twenty_voxels():
    key, rows = jax.random.key(0), jnp.arange(400)
    found = elastic.elastic_displacement(
        key, rows, rows, section_shape=(400, 400), kind="published"
    )
    grid = 20 + 0.6 * np.asarray(jax.random.normal(key, (2, 10, 10)))
    for axis in range(2):
        expected = scipy.ndimage.zoom(grid[axis], 40, order=1)
        np.testing.assert_allclose(found[axis, :-1, :-1], expected[:-1, :-1], atol=1e-4)
    assert abs(float(found.mean()) - 20) < 0.3


def test_elastic_map_of_a_window_is_that_of_the_volume():
    key, shape = jax.random.key(4), (90, 120)
    whole = elastic.elastic_displacement(
        key, jnp.arange(90), jnp.arange(120), section_shape=shape, kind="released"
    )
    rows, columns = jnp.asarray([3, 2, 1, 0, 1, 2]), jnp.asarray([118, 119, 119, 118])
    part = elastic.elastic_displacement(key, rows, columns, section_shape=shape, kind="released")
    np.testing.assert_allclose(part, whole[:, rows][:, :, columns], atol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_sampling_against_scipy(linear):
    rng = np.random.default_rng(1)
    volume = rng.normal(size=(4, 12, 15)).astype(np.float32)
    y, x = rng.uniform(-4, 16, (9, 7)), rng.uniform(-4, 19, (9, 7))
    sections = np.array([2, 0, 2])
    found = elastic.sample_window(
        volume, sections, jnp.asarray(y, jnp.float32), jnp.asarray(x, jnp.float32), linear=linear
    )
    at = [np.clip(y, 0, 11), np.clip(x, 0, 14)]
    expected = [
        scipy.ndimage.map_coordinates(volume[s], at, order=int(linear), mode="nearest")
        for s in sections
    ]
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-5)


def test_deformed_window_is_a_window_of_the_deformed_volume():
    """One map per epoch, shared by all sections: deform all with SciPy, then cut."""
    data = _world()
    key = jax.random.key(11)
    augmentation = dataclasses.replace(augment.NO_AUGMENTATION, elastic="released")
    corner_key, epoch_key, _ = jax.random.split(key, 3)
    grid = {"volume_shape": SHAPE, "output_window": OUTPUT, "spacing": SPACING}
    per_epoch = int(np.prod(windows.grid_bins(*grid.values())))
    draw = jax.jit(lambda s: draw_window(key, s, data, augmentation=augmentation, **SIZES))
    for step in [0, 3, per_epoch + 1]:
        moved = elastic.elastic_displacement(
            jax.random.fold_in(epoch_key, step // per_epoch),
            jnp.arange(SHAPE[1]),
            jnp.arange(SHAPE[2]),
            section_shape=SHAPE[1:],
            kind="released",
        )
        at = np.asarray(moved) + np.indices(SHAPE[1:])
        at = [np.clip(a, 0, s - 1) for a, s in zip(at, SHAPE[1:], strict=True)]
        deformed = np.stack(
            [scipy.ndimage.map_coordinates(s, at, order=0) for s in np.asarray(data["image"])]
        )
        corner = windows.window_corner(corner_key, step=step, **grid)
        expected = windows.cut_window(deformed, corner, INPUT, output_window=OUTPUT)
        image, _, _ = draw(step)
        # A position within rounding of half a voxel may go either way.
        assert (np.asarray(image) != np.asarray(expected)).mean() < 1e-3


def test_windows_are_functions_of_key_and_step_in_every_mode():
    data = _world()
    keys, steps = jax.random.split(jax.random.key(0), 2), jnp.asarray([0, 100])

    def draw(key, step):
        return draw_window(key, step, data, augmentation=EVERYTHING, **SIZES)

    jitted = [jax.jit(draw)(k, s) for k, s in zip(keys, steps, strict=True)]
    runs = {
        "plain": [draw(keys[0], int(steps[0]))],
        "vmap": list(zip(*jax.jit(jax.vmap(draw))(keys, steps), strict=True)),
        "map": list(
            zip(*jax.jit(lambda: jax.lax.map(lambda a: draw(*a), (keys, steps)))(), strict=True)
        ),
    }
    for windows_of_mode in runs.values():
        for found, expected in zip(windows_of_mode, jitted, strict=False):
            for a, b in zip(found, expected, strict=True):
                # Rounding may move a position across half a voxel.
                assert np.isclose(a, b, rtol=1e-4, atol=0.5).mean() > 0.999
    again = jax.jit(draw)(keys[1], steps[1])
    for a, b in zip(again, jitted[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(jitted[0][0], jax.jit(draw)(keys[1], steps[0])[0])


def test_unlabelled_voxels_weigh_nothing_and_weights_are_optional():
    labels = np.zeros(SHAPE, np.int32)
    labels[:, ::2] = -1
    data = training_arrays(np.zeros(SHAPE), labels)
    assert "weights" not in data
    for elastic_kind in (None, "released"):
        how = Augmentation(elastic=elastic_kind)
        _, drawn, weights = draw_window(jax.random.key(0), 4, data, augmentation=how, **SIZES)
        np.testing.assert_array_equal(weights, np.asarray(drawn) >= 0)
        assert 0 < float(weights.mean()) < 1


def test_bounds_are_found_when_not_given():
    data = _world()
    bare = {k: v for k, v in data.items() if k not in ("minimum", "maximum")}
    how = Augmentation(missing_section=0.5)
    draws = [draw_window(jax.random.key(0), 1, d, augmentation=how, **SIZES) for d in (data, bare)]
    np.testing.assert_array_equal(draws[0][0], draws[1][0])


def test_missing_sections():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3)), jnp.float32)
    lost = 0
    for seed in range(50):
        found = defects.missing_sections(jax.random.key(seed), image, probability=0.3, fill=-9.0)
        for before, after in zip(image, found, strict=True):
            whole = np.array_equal(before, after)
            assert whole or np.all(after == -9.0)
            lost += not whole
    assert 30 < lost < 90  # 60 expected, standard deviation 6.5


def test_blur_against_scipy():
    image = np.random.default_rng(0).normal(size=(3, 20, 17)).astype(np.float32)
    found = defects.blur_sections(jax.random.key(0), image, probability=1.0, sigma=1.5)
    expected = [scipy.ndimage.gaussian_filter(s, 1.5, mode="reflect") for s in image]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    same = defects.blur_sections(jax.random.key(0), image, probability=0.0, sigma=1.5)
    np.testing.assert_array_equal(same, image)


def test_noise():
    image = jnp.ones((4, 40, 40))
    found = defects.add_noise(jax.random.key(0), image, probability=1.0, deviation=0.3)
    assert abs(float(jnp.std(found)) - 0.3) < 0.02 and abs(float(jnp.mean(found)) - 1) < 0.02
    same = defects.add_noise(jax.random.key(0), image, probability=0.0, deviation=0.3)
    np.testing.assert_array_equal(same, image)


def test_misalignment_by_brute_force():
    labels = np.arange(1, 5 * 12 * 11 + 1).reshape(5, 12, 11).astype(np.int32)
    image = np.pad(labels, ((0, 0), (3, 3), (2, 2)), constant_values=-7).astype(np.float32)
    firsts, shifts = set(), set()
    for seed in range(40):
        out = defects.misalign(
            jax.random.key(seed), image, labels, labels.astype(np.float32), probability=0.8, reach=2
        )
        moved, found, weights = (np.asarray(a) for a in out)
        np.testing.assert_array_equal(weights, np.where(found < 0, 0, found))
        shift_of = []
        for z in range(5):
            matches = []
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    expected = np.full((12, 11), -1)
                    for y in range(12):
                        for x in range(11):
                            if 0 <= y + dy < 12 and 0 <= x + dx < 11:
                                expected[y, x] = labels[z, y + dy, x + dx]
                    if np.array_equal(expected, found[z]):
                        matches.append((dy, dx))
            assert len(matches) == 1
            shift_of.append(matches[0])
            inside = found[z] > 0
            np.testing.assert_array_equal(moved[z, 3:-3, 2:-2][inside], found[z][inside])
        changed = [z for z in range(5) if shift_of[z] != (0, 0)]
        if changed:
            assert changed == list(range(changed[0], 5)) and changed[0] >= 1
            assert len({shift_of[z] for z in changed}) == 1
            firsts.add(changed[0])
            shifts.add(shift_of[-1])
    assert firsts == {1, 2, 3, 4} and len(shifts) > 8


def test_fields_tell_their_meaning_and_ranges_are_checked():
    for field in dataclasses.fields(Augmentation):
        assert field.metadata["help"] and field.metadata["unit"]
    for wrong in ({"reflections": "zw"}, {"elastic": "yes"}, {"blur": 1.5}, {"contrast": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Augmentation(**wrong)
    with pytest.raises(ValueError, match="odd"):
        draw_window(
            jax.random.key(0),
            0,
            _world(),
            input_window=(3, 9, 8),
            output_window=(3, 8, 8),
            spacing=SPACING,
            augmentation=Augmentation(),
        )
    with pytest.raises(ValueError, match="labels"):
        training_arrays(np.zeros((2, 3, 4)), np.zeros((2, 3, 3), int))
