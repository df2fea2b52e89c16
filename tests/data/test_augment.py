"""Augmentation against SciPy and brute force; alignment, determinism, and the modes of running."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from densejax.data import augment, defects, elastic, windows
from densejax.data.augment import Augmentation, draw_window, training_arrays
from densejax.data.sampling import Sampling, class_table

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
    for wrong in (
        {"reflections": "zw"},
        {"elastic": "yes"},
        {"blur": 1.5},
        {"contrast": -0.1},
        {"resampling": 1.1},
        {"low_resolution": -0.1},
        {"scaling": -0.1},
        {"warp": -1.0},
        {"gamma": -0.1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Augmentation(**wrong)
    with pytest.raises(ValueError, match=r"elastic 'released' and resampling 0\.5"):
        Augmentation(elastic="released", resampling=0.5)
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


SQUARE = {"input_window": (3, 20, 20), "output_window": (3, 16, 16), "spacing": SPACING}
NUMBER = 400


@functools.cache
def _program(augmentation, sampling):
    def draw(step, data):
        return draw_window(
            jax.random.key(5), step, data, augmentation=augmentation, sampling=sampling, **SQUARE
        )

    return jax.jit(lambda data: jax.lax.map(lambda step: draw(step, data), jnp.arange(NUMBER)))


def _drawn(data, *, sampling=None, **options):
    """Image, labels and weights of the first windows of a training, [NUMBER, z, y, x]."""
    augmentation = dataclasses.replace(augment.NO_AUGMENTATION, **options)
    return [np.asarray(part) for part in _program(augmentation, sampling)(data)]


def test_axes_are_swapped_half_of_the_time_and_all_blocks_alike():
    block = jnp.arange(2 * 4 * 4).reshape(2, 4, 4)
    run = jax.jit(lambda k: augment.swap_axes(jax.random.key(k), block, block[:, 1:3, 1:3] * 10))
    swapped = 0
    for seed in range(60):
        one, other = run(seed)
        turned = np.array_equal(one, np.transpose(block, (0, 2, 1)))
        assert turned or np.array_equal(one, block)
        np.testing.assert_array_equal(other, np.asarray(one)[:, 1:3, 1:3] * 10)
        swapped += turned
    assert 30 - 5 * 3.9 < swapped < 30 + 5 * 3.9  # binomial: mean 30, deviation 3.9
    with pytest.raises(ValueError, match=r"\(2, 4, 3\)"):
        augment.swap_axes(jax.random.key(0), block, jnp.zeros((2, 4, 3)))


def test_gamma_is_one_power_of_grey_levels_between_the_ends():
    image = np.random.default_rng(0).uniform(-3, 5, (2, 6, 7)).astype(np.float32)
    share = (image - image.min()) / np.ptp(image)
    inside = (share > 0.01) & (share < 0.99)
    exponents = []
    run = jax.jit(lambda seed: augment.adjust_gamma(jax.random.key(seed), image, gamma=0.4))
    for seed in range(150):
        found = np.asarray(run(seed))
        np.testing.assert_allclose(
            [found.min(), found.max()], [image.min(), image.max()], atol=1e-3
        )
        changed = (found - image.min()) / np.ptp(image)
        powers = np.log(changed[inside]) / np.log(share[inside])
        exponents.append(np.log(powers.mean()) / np.log(1.4))
        np.testing.assert_allclose(changed, share ** powers.mean(), atol=1e-3)
        # The order of grey levels stays.
        assert np.all(np.diff(found.ravel()[np.argsort(image, axis=None)]) >= 0)
    assert -1.001 < min(exponents) < -0.9 and 0.9 < max(exponents) < 1.001
    assert abs(np.mean(exponents)) < 5 / np.sqrt(3 * 150)
    constant = augment.adjust_gamma(jax.random.key(0), jnp.full((1, 2, 2), 3.0), gamma=0.4)
    np.testing.assert_allclose(constant, 3.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 8), (3, 7, 5)])
def test_halved_resolution_is_means_of_blocks(shape):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = augment.halve_resolution(jax.random.key(0), image, probability=1.0)
    expected = image.copy()
    for z, y, x in np.ndindex(shape[0], shape[1] // 2, shape[2] // 2):
        block = (z, slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2))
        expected[block] = image[block].mean()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    same = augment.halve_resolution(jax.random.key(0), image, probability=0.0)
    np.testing.assert_array_equal(same, image)


def test_quarter_turns_and_reflections_are_all_turns_and_keep_labels_in_the_image():
    image, labels, weights = _drawn(_world(), quarter_turns=True, reflections="zyx")
    np.testing.assert_array_equal(image[:, :, 2:-2, 2:-2], labels)
    np.testing.assert_array_equal(weights, labels + 0.5)
    place = np.stack(np.unravel_index(labels, SHAPE))[:, :, 0, :2, :2]
    down, across = place[..., 1, 0] - place[..., 0, 0], place[..., 0, 1] - place[..., 0, 0]
    turns = {tuple(turn) for turn in np.concatenate([down[1:], across[1:]]).T.tolist()}
    assert turns == {
        turn for a in (-1, 1) for b in (-1, 1) for turn in ((a, 0, 0, b), (0, a, b, 0))
    }


def _coordinates():
    """Three volumes, in each of which a voxel tells its place along one axis."""
    for axis in np.indices(SHAPE):
        yield training_arrays(axis.astype(np.float32), axis.astype(np.int32), weights=axis + 0.5)


RESAMPLED = {"resampling": 1.0, "rotation": 40.0, "scaling": 0.3, "warp": 1.5}


def test_a_resampled_image_and_its_labels_are_read_at_the_same_places():
    """A ramp is interpolated exactly, mirrored borders included: labels are its nearest voxels."""
    places, still = [], []
    for data in _coordinates():
        image, labels, weights = _drawn(data, **RESAMPLED)
        middle = image[:, :, 2:-2, 2:-2]
        # A position within rounding of half a voxel may go either way.
        assert (np.floor(middle + 0.5) != labels).mean() < 1e-3
        assert np.abs(middle - labels).max() < 0.5 + 1e-3
        np.testing.assert_array_equal(weights, labels + 0.5)
        places.append(image)
        still.append(_drawn(data)[0])
    np.testing.assert_allclose(places[0], still[0], atol=1e-5)
    for place, own in zip(places[1:], still[1:], strict=True):
        assert np.all(np.abs(place - own).max((1, 2, 3)) > 0.5)
        # All sections of a window move alike.
        np.testing.assert_array_equal(place, place[:, :1].repeat(3, axis=1))
        # The middle of a window away from borders stays, but for the warp (deviation below 1.5).
        inside = (own.min((1, 2, 3)) > 15) & (own.max((1, 2, 3)) < 70)
        drift = (place - own)[inside, 0, 9:11, 9:11].mean((1, 2))
        assert len(drift) > 50 and abs(drift.mean()) < 0.4 and 0.1 < drift.std() < 1.5


def test_a_window_is_resampled_as_often_as_it_says():
    _, _, data = _coordinates()
    always, some, never = (
        _drawn(data, **(RESAMPLED | {"resampling": share}))[0] for share in (1.0, 0.4, 0.0)
    )
    moved = np.abs(some - never).max((1, 2, 3)) > 0
    np.testing.assert_allclose(some[moved], always[moved], atol=1e-4)
    assert abs(moved.sum() - 160) < 5 * 9.8  # binomial: mean 160, deviation 9.8


def test_a_resampled_image_may_be_of_another_type():
    data = _world()
    small = data | {"image": (data["image"] / 64).astype(jnp.float16)}
    wide = small | {"image": small["image"].astype(jnp.float32)}
    options = RESAMPLED | {"resampling": 0.4}
    (one, *rest), (other, *others) = (_drawn(one, **options) for one in (small, wide))
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=0.1)
    for a, b in zip(rest, others, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_resampled_window_is_the_same_side_by_side():
    data, options = _world(), RESAMPLED | {"resampling": 0.4}
    how = dataclasses.replace(augment.NO_AUGMENTATION, **options)

    def draw(step):
        return draw_window(jax.random.key(5), step, data, augmentation=how, **SQUARE)

    mapped = jax.jit(jax.vmap(draw))(jnp.arange(8))
    for found, other in zip(mapped, _drawn(data, **options), strict=True):
        # Rounding may move a position across half a voxel.
        assert np.isclose(found, other[:8], rtol=1e-4, atol=0.5).mean() > 0.999


def test_without_the_newer_options_a_window_is_cut_reflected_and_lit():
    """The default window, put together from its parts: none of the other fields takes part."""
    data, key = _world(), jax.random.key(8)
    corner_key, _, window_key = jax.random.split(key, 3)
    grid = {"volume_shape": SHAPE, "output_window": OUTPUT, "spacing": SPACING}
    idle = Augmentation(rotation=77.0, scaling=0.9, warp=9.0, blur_sigma=5.0, noise_deviation=2.0)
    draws = [
        jax.jit(lambda step, how=how: draw_window(key, step, data, augmentation=how, **SIZES))
        for how in (Augmentation(), idle)
    ]
    for step in (0, 11):
        corner = windows.window_corner(corner_key, step=step, **grid)
        reflect_key, light_key, _ = jax.random.split(jax.random.fold_in(window_key, step), 3)
        parts = augment.reflect_window(
            reflect_key,
            windows.cut_window(data["image"], corner, INPUT, output_window=OUTPUT),
            *(windows.cut_window(data[name], corner, OUTPUT) for name in ("labels", "weights")),
            axes="zyx",
        )
        lit = augment.adjust_intensity(
            light_key,
            parts[0],
            brightness=0.12,
            contrast=0.2,
            intensity_range=data["maximum"] - data["minimum"],
        )
        default, other = (draw(step) for draw in draws)
        np.testing.assert_allclose(default[0], lit, rtol=1e-5, atol=1e-2)
        for found, expected in zip(default[1:], parts[1:], strict=True):
            np.testing.assert_array_equal(found, expected)
        for found, expected in zip(default, other, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_one_option_does_not_change_what_another_draws():
    data, plain = _world(), {"reflections": "zyx"}
    image, labels, _ = _drawn(data, **plain)
    found = _drawn(data, **plain, gamma=1e-7, low_resolution=1e-9, resampling=1e-9, contrast=1e-7)
    np.testing.assert_array_equal(found[1], labels)
    # A change of nothing leaves all but rounding: image values go up to 45 000.
    np.testing.assert_allclose(found[0], image, rtol=1e-3, atol=1.0)
    found = _drawn(data, **plain, quarter_turns=True)
    swapped = np.swapaxes(labels, 2, 3)
    same, turned = ((found[1] == other).all((1, 2, 3)) for other in (labels, swapped))
    assert np.all(same | turned) and same.any() and turned.any()
    np.testing.assert_array_equal(found[0][same], image[same])


def test_what_happens_to_a_window_is_drawn_independently():
    """Over many windows, no two draws go together: chance, angle, light, gamma, blur and turns."""
    signals = {}
    z, y, x = np.indices(SHAPE)
    place = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
    # Sections of one grey level: what moves within planes leaves them, light and gamma show.
    data = training_arrays(z.astype(np.float32), place, weights=place)
    image, labels, _ = _drawn(
        data,
        brightness=0.3,
        contrast=0.3,
        gamma=0.5,
        resampling=0.5,
        rotation=30.0,
        scaling=0.0,
        warp=0.0,
    )
    first, rows, columns = np.unravel_index(labels[:, 0], SHAPE)
    signals["moved"] = (labels != _drawn(data)[1]).any((1, 2, 3))
    angle = np.arctan2(columns[:, -1, 8] - columns[:, 0, 8], rows[:, -1, 8] - rows[:, 0, 8])
    low, middle, high = image[:, :, 8, 8].T
    signals["contrast"] = (high - low) / 2
    signals["brightness"] = low / signals["contrast"] - first[:, 0, 0]
    signals["gamma"] = np.log(-np.log((middle - low) / (high - low)))
    inside = signals["moved"] & (np.minimum(rows, columns).min((1, 2)) > 0)
    # A board of fields of one voxel: means of blocks are grey, a blur leaves nearly nothing.
    data = training_arrays(((y + x) % 2).astype(np.float32), place, weights=place)
    turned = {"quarter_turns": True, "reflections": "zyx"}
    options = {"low_resolution": 0.5, "noise": 0.5, "noise_deviation": 0.01}
    coarse, labels, _ = _drawn(data, **options, **turned)
    signals["low resolution"] = np.ptp(coarse, axis=(1, 2, 3)) < 0.5
    signals["noise"] = np.abs(2 * coarse - np.rint(2 * coarse)).max((1, 2, 3)) > 1e-3
    blurred, _, _ = _drawn(data, blur=0.5, blur_sigma=1.5, **turned)
    signals |= {f"blur {n}": np.ptp(blurred[:, n], axis=(1, 2)) < 0.5 for n in range(3)}
    steps = labels[:, 1, 0, 0] - labels[:, 0, 0, 0]
    across = labels[:, 0, 0, 1] - labels[:, 0, 0, 0]
    signals |= {"z": steps > 0, "swap": np.abs(across) > 1, "x": across > 0}
    table = np.array([np.asarray(values, float) for values in signals.values()])
    assert np.all(table.std(1) > 0.05)
    found = np.corrcoef(table) - np.eye(len(table))
    names = list(signals)
    worst = np.unravel_index(np.abs(found).argmax(), found.shape)
    assert np.abs(found).max() < 5 / np.sqrt(NUMBER), [names[n] for n in worst]
    for name in ("contrast", "brightness", "gamma"):
        assert abs(np.corrcoef(angle[inside], table[names.index(name)][inside])[0, 1]) < 0.45


def _rare():
    """One voxel of class 1, and rows without labels; the image tells the labels."""
    labels = np.zeros(SHAPE, np.int32)
    labels[2, 40, 3] = 1
    labels[:, 80:] = -1
    table = jax.tree.map(jnp.asarray, class_table(labels, 2))
    return training_arrays(labels.astype(np.float32), labels) | table


def test_windows_are_drawn_by_class_where_that_is_asked_for():
    data = _rare()
    image, labels, weights = _drawn(data, sampling=Sampling(class_share=1.0), reflections="zyx")
    np.testing.assert_array_equal(weights, labels >= 0)
    np.testing.assert_array_equal(image[:, :, 2:-2, 2:-2], labels)
    shown = (labels == 1).any((1, 2, 3)).sum()
    # Half of them, and by chance a few of the others: of 4 x 75 x 68 corners at most 3 x 16 x 4
    # show the voxel. Binomial deviation 10.
    assert 200 - 5 * 10 < shown < 204 + 5 * 10


def test_quarter_turns_of_oblong_windows_are_refused():
    with pytest.raises(ValueError, match=r"quarter_turns"):
        draw_window(
            jax.random.key(0), 0, _world(), augmentation=Augmentation(quarter_turns=True), **SIZES
        )


def test_the_planned_windows_hold_numbers_and_labels_of_the_volume():
    data, planned = _rare(), dataclasses.asdict(augment.PLANNED)
    image, labels, weights = _drawn(data, sampling=Sampling(0.5, 0.5), **planned)
    assert np.all(np.isfinite(image)) and image.shape == (NUMBER, 3, 20, 20)
    assert set(np.unique(labels)) == {-1, 0, 1}
    np.testing.assert_array_equal(weights, labels >= 0)
