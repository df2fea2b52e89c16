"""The section that a run records: labelled by windows, each voxel by its most central one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from densejax.data.datasets import LabelledVolume, standardise
from densejax.segmentation.rendering import films
from densejax.segmentation.rendering.films import section_data
from densejax.segmentation.task import WindowTask

SHAPE, WINDOW = (7, 41, 50), (3, 16, 20)
NAMES = ("background", "cell", "mitochondrion")


def blurred(params, images):
    """A network of which every window's border, place and depth is seen in its output."""
    kernel = jnp.ones((3, 5, 5, 1, 1)) / 75
    dimensions = ("NDHWC", "DHWIO", "NDHWC")
    mean = jax.lax.conv_general_dilated(
        images, kernel, (1, 1, 1), "SAME", dimension_numbers=dimensions
    )
    return jnp.concatenate([params * mean, images, -params * images], axis=-1), {}


def volume():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, SHAPE).astype(np.uint8)
    labels = rng.integers(0, 3, SHAPE).astype(np.int32)
    return LabelledVolume("noise", images, labels, None, (50.0, 10.0, 10.0), ("a", "b", "c"))


def task():
    return WindowTask(init_params=jnp.float32, network=blurred, draw=None, classes=3)  # type: ignore


def starts(size, window, overlap):
    return [*range(0, size - window, window - overlap), size - window]


@pytest.mark.parametrize("section", [0, 3, 6])
def test_a_section_is_its_windows_put_together_by_brute_force(section):
    data = section_data(volume(), section=section, window=WINDOW, output=WINDOW)
    found = jax.jit(task().section)({"params": jnp.float32(4)}, data)["probabilities"]
    assert found.shape == (*SHAPE[1:], 3) and found.dtype == np.uint8
    images = standardise(volume().images)
    first = min(max(section - 1, 0), SHAPE[0] - 3)
    expected = np.zeros(found.shape)
    reach = np.zeros(SHAPE[1:])
    for y in starts(SHAPE[1], WINDOW[1], WINDOW[1] // 3):
        for x in starts(SHAPE[2], WINDOW[2], WINDOW[2] // 3):
            tile = images[first : first + 3, y : y + WINDOW[1], x : x + WINDOW[2]]
            logits = np.asarray(blurred(jnp.float32(4), tile[None, ..., None])[0])[0]
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            for i, j in np.ndindex(WINDOW[1:]):
                central = min(i + 1, WINDOW[1] - i, j + 1, WINDOW[2] - j)
                if central > reach[y + i, x + j]:
                    reach[y + i, x + j] = central
                    expected[y + i, x + j] = shares[section - first, i, j]
    assert reach.min() >= 1
    # Half a step of rounding.
    np.testing.assert_allclose(np.asarray(found) / 255, expected, atol=0.51 / 255 + 1e-5)


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(9, 16, 20\)"):
        section_data(volume(), section=0, window=(9, 16, 20), output=(9, 16, 20))


def world(shape=(12, 60, 80)):
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    labels[2:10, 10:50, 10:70] = 1
    labels[4:7, 20:40, 40:60] = 2
    return (90 * labels + rng.integers(0, 60, shape)).astype(np.uint8), labels


def frames(folder, section, steps=(0, 10, 20)):
    rng = np.random.default_rng(0)
    files = []
    for step in steps:
        shares = rng.random((*section.image.shape, 3)) + step * np.eye(3)[section.truth % 3]
        shares = 255 * shares / shares.sum(-1, keepdims=True)
        files.append(folder / f"{step:04d}.npz")
        np.savez(files[-1], probabilities=np.rint(shares).astype(np.uint8))
    return films.Frames(list(steps), files, [10, 20], [0.4, 0.6], "seed 0000")


def test_films_have_a_picture_a_frame_and_refuse_another_section(tmp_path):
    image, labels = world()
    section = films.Section(image[5], labels[5], (10, 10), NAMES, "world, section 5")
    held = frames(tmp_path, section)
    assert held.heading(0) == "seed 0000   step 0 of 20"
    assert held.heading(2).endswith("evaluation MIoU 0.600")
    for make in (films.probability_film, films.segmentation_film):
        with Image.open(make(held, section, tmp_path / "film.gif")) as film:
            assert film.n_frames == 3
    other = films.Section(image[5, 1:], labels[5, 1:], (10, 10), NAMES)
    with pytest.raises(ValueError, match=r"0000\.npz: shape \(60, 80, 3\); expected \(59, 80, 3\)"):
        films.probability_film(held, other, tmp_path / "film.gif")
    with pytest.raises(ValueError, match="no frame"):
        films.segmentation_film(films.Frames([], []), section, tmp_path / "film.gif")
