"""Augmentation against PyTorch, PIL, colorsys and SciPy; and what is drawn how often."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance

from densejax.data import images as im

KEY = jax.random.key(0)


def pictures(b=3, y=6, x=7, c=3, seed=0):
    return np.random.default_rng(seed).random((b, y, x, c)).astype(np.float32)


def test_hue_matches_colorsys():
    colours = [[0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]
    x = np.concatenate([pictures().reshape(-1, 3), np.array(colours, np.float32)])
    for turns in (-0.5, -0.1, 0.0, 0.25, 0.5):
        expected = []
        for r, g, b in x:
            h, s, v = colorsys.rgb_to_hsv(r, g, b)
            expected.append(colorsys.hsv_to_rgb((h + turns) % 1, s, v))
        np.testing.assert_allclose(im.shift_hue(x, jnp.float32(turns)), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "atol"),
    [
        (im.brighten, ImageEnhance.Brightness, 1.01),
        # PIL rounds the grey picture and its mean to whole levels.
        (im.change_contrast, ImageEnhance.Contrast, 2.01),
        (im.change_saturation, ImageEnhance.Color, 2.01),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.4])
def test_colours_match_pil(ours, theirs, atol, factor):
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 3)).astype(np.uint8)
    expected = np.asarray(theirs(Image.fromarray(x)).enhance(factor), np.float64)
    found = 255 * np.asarray(ours(im.to_unit(x), factor), np.float64)
    np.testing.assert_allclose(found, expected, atol=atol)


def test_grey_matches_pil():
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(x).convert("L"), np.float64)
    np.testing.assert_allclose(255 * im.greyscale(im.to_unit(x))[..., 0], expected, atol=0.51)


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.4), (5, 1.3), (11, 2.0)])
def test_blur_matches_scipy(kernel, sigma):
    x = pictures()
    found = im.gaussian_blur(x, np.full(3, sigma, np.float32), kernel=kernel)
    offsets = np.arange(kernel) - kernel // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    expected = x.astype(np.float64)
    for axis in (1, 2):
        expected = scipy.ndimage.correlate1d(expected, weights / weights.sum(), axis, mode="mirror")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_resampling_matches_pytorch():
    torch = pytest.importorskip("torch")
    x = pictures(1, 12, 10)[0]
    resample = jax.jit(im._resample, static_argnums=2)
    for box in ((0, 0, 12, 10), (3, 2, 5, 7), (11, 9, 1, 1), (0, 4, 12, 3)):
        for size in ((12, 10), (4, 9), (16, 16)):
            y0, x0, h, w = box
            part = torch.tensor(x[y0 : y0 + h, x0 : x0 + w].transpose(2, 0, 1))[None]
            expected = torch.nn.functional.interpolate(
                part, size, mode="bilinear", align_corners=False
            )[0].numpy()
            found = resample(jnp.asarray(x), jnp.array(box, jnp.float32), size)
            np.testing.assert_allclose(found.transpose(2, 0, 1), expected, rtol=1e-4, atol=1e-5)


def test_windows_of_the_resized_crop_are_drawn_as_published():
    y, x, scale, ratio = 40, 30, (0.2, 1.0), (3 / 4, 4 / 3)
    keys = jax.random.split(KEY, 4000)
    draw = jax.jit(jax.vmap(lambda k: im._draw_box(k, y, x, scale, ratio)))
    boxes = np.asarray(draw(keys))
    y0, x0, h, w = boxes.T
    assert (boxes == np.round(boxes)).all()
    assert (y0 >= 0).all() and (x0 >= 0).all() and (y0 + h <= y).all() and (x0 + w <= x).all()
    # Plain Python, as torchvision's loop.
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(4000):
        for _ in range(10):
            area = y * x * rng.uniform(*scale)
            shape = np.exp(rng.uniform(*np.log(ratio)))
            tried = round(np.sqrt(area * shape)), round(np.sqrt(area / shape))
            if tried[0] <= x and tried[1] <= y:
                areas.append(tried[0] * tried[1])
                break
    quantiles = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(
        np.quantile(h * w, quantiles), np.quantile(areas, quantiles), rtol=0.06
    )
    assert 0.7 < (w / h).min() and (w / h).max() < 1.42
    free = w < x - 5
    np.testing.assert_allclose((x0 / np.maximum(x - w, 1))[free].mean(), 0.5, atol=0.03)


def test_a_window_that_never_fits_is_central():
    box = im._draw_box(KEY, 10, 100, (0.99, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(box, [0, 43, 10, 13])


def test_crop_takes_every_offset_and_pads_with_zeros():
    x = pictures(200, 3, 4, 1)
    found = np.asarray(im.random_crop(KEY, x, padding=1))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = set()
    for i in range(200):
        windows = {(a, b): padded[i, a : a + 3, b : b + 4] for a in range(3) for b in range(3)}
        hits = [where for where, w in windows.items() if np.array_equal(w, found[i])]
        assert len(hits) == 1
        seen.update(hits)
    assert len(seen) == 9
    np.testing.assert_array_equal(im.random_crop(KEY, x, padding=0), x)


def test_flip_grey_blur_and_jitter_happen_as_often_as_asked():
    x = pictures(400, 3, 4)
    flipped = np.asarray(im.random_flip(KEY, x))
    there = [np.array_equal(a, b) for a, b in zip(flipped, x[:, :, ::-1], strict=True)]
    stays = [np.array_equal(a, b) for a, b in zip(flipped, x, strict=True)]
    assert all(a != b for a, b in zip(there, stays, strict=True)) and 150 < sum(there) < 250
    for function, options, rate in (
        (im.random_greyscale, {}, 0.2),
        (im.random_blur, {"kernel": 3}, 0.5),
        (im.colour_jitter, {"probability": 0.8}, 0.8),
    ):
        run = jax.jit(functools.partial(function, **options))
        changed = (np.abs(np.asarray(run(KEY, x)) - x) > 1e-4).any((1, 2, 3)).mean()
        assert abs(changed - rate) < 0.1, function.__name__


def test_jitter_with_one_strength_is_that_change_alone():
    x = pictures(50)
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    np.testing.assert_allclose(im.colour_jitter(KEY, x, **none), x, atol=2e-6)
    found = np.asarray(im.colour_jitter(KEY, 0.5 * x, **(none | {"brightness": 0.4})))
    factors = found.sum((1, 2, 3)) / (0.5 * x).sum((1, 2, 3))
    np.testing.assert_allclose(found, factors[:, None, None, None] * 0.5 * x, atol=2e-6)
    assert 0.6 <= factors.min() < 0.7 and 1.3 < factors.max() <= 1.4001


def test_standardise():
    x = pictures(c=2)
    found = im.standardise(x, mean=(0.5, 0.25), std=(2.0, 4.0))
    expected = (x - np.array([0.5, 0.25])) / np.array([2, 4])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", ["none", "cifar", "imagenet", "simclr", "moco"])
def test_recipes_keep_range_and_are_pure(recipe):
    x = pictures(2, 40, 40)
    size = None if recipe in ("none", "cifar") else 36
    run = jax.jit(lambda k, a: im.augment(k, a, recipe=recipe, size=size))
    found = run(KEY, x)
    assert found.shape == (2, size or 40, size or 40, 3) and found.dtype == jnp.float32
    assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6
    np.testing.assert_array_equal(found, run(KEY, x))
    assert recipe == "none" or not np.array_equal(found, run(jax.random.key(1), x))


def test_modes(assert_modes_agree):
    def fn(key, x):
        return im.random_blur(key, im.random_crop(key, x, padding=1), kernel=3)

    assert_modes_agree(fn, KEY, pictures(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: im.to_unit(x), "expected uint8 images, found float32"),
        (lambda x: im.standardise(x, mean=(0.5,), std=(1.0,)), "expected 3 means"),
        (lambda x: im.random_crop(KEY, x, padding=-1), "padding is -1"),
        (lambda x: im.random_crop(KEY, x[0]), r"expected images \[b, y, x, c\]"),
        (lambda x: im.random_flip(KEY, x, probability=2.0), r"probability is 2.0"),
        (lambda x: im.random_resized_crop(KEY, x, scale=(0.0, 1.0)), r"scale is \(0.0, 1.0\)"),
        (lambda x: im.colour_jitter(KEY, x[..., :1]), r"expected images \[b, y, x, 3\]"),
        (lambda x: im.colour_jitter(KEY, x, hue=0.6), r"the hue 0 to 0.5"),
        (lambda x: im.random_greyscale(KEY, x[..., :2]), r"expected images \[b, y, x, 3\]"),
        (lambda x: im.random_blur(KEY, x, kernel=4), "kernel is 4; expected an odd number"),
        (lambda x: im.random_blur(KEY, x, kernel=13), "odd number up to 11"),
        (lambda x: im.augment(KEY, x, recipe="byol"), "recipe 'byol'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(pictures())
