"""Error weights against values worked out by hand, brute force, and a Fourier-space reference."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from densejax.data import weights


def _edge(size=60, at=30):
    """One section: background left of `at`, cell from there on."""
    labels = np.zeros((1, 8, size), np.int32)
    labels[..., at:] = 1
    return labels


def _random_labels(seed=0, shape=(2, 21, 26)):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(-1, 7, (shape[0], 3, 4))
    return np.kron(blocks, np.ones((1, 7, 7), np.int64))[:, : shape[1], : shape[2]].astype(np.int32)


def test_class_balance_by_hand():
    labels = np.array([[[0, 0, 0, 0], [1, 1, 2, -1]]], np.int32)
    found = weights.class_balance(labels, 4)  # class 3 is absent
    np.testing.assert_allclose(found, [[[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 1, 0]]])
    assert found.dtype == np.float32
    assert not weights.class_balance(np.full((1, 2, 2), -1), 3).any()


def test_class_balance_gives_every_class_the_same_total():
    labels = _random_labels()
    found = weights.class_balance(labels, 7)
    totals = [found[labels == c].sum() for c in range(7) if (labels == c).any()]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-5)
    assert found.max() == 1 and not found[labels == -1].any()


def test_published_edge_profile():
    """Distances 1 ... 5 from a straight edge; 0.882 times a Gaussian of 6 voxels, before alpha."""
    expected = np.array([0.412, 0.354, 0.299, 0.247, 0.200])
    # The sampled Gaussian sums from half a voxel beyond: the normal distribution function.
    np.testing.assert_allclose(0.882 * ndtr(-(np.arange(5) + 0.5) / 6), expected, atol=1e-3)
    profile = weights.edge_preservation(_edge(), borders=[((0,), (1,))], threshold=0.0)[0, 4]
    np.testing.assert_allclose(profile[30:35], expected, atol=1e-3)
    assert not profile[:30].any()
    # With alpha: 0 from the fourth voxel on (0.247 < 0.25), and the largest value unchanged.
    profile = weights.edge_preservation(_edge(), borders=[((0,), (1,))])[0, 4]
    kept = (expected[:3] - 0.25) * 0.412 / (0.412 - 0.25)
    np.testing.assert_allclose(profile[30:33], kept, atol=4e-3)
    assert not profile[33:].any()


def test_edge_preservation_by_brute_force():
    labels = _random_labels()
    sigma = 1.5
    reach = 6
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    total = np.zeros(labels.shape)
    groups = {"b": [0], "c": [1], "o": [2, 3, 4, 5, 6]}
    for source, target in ("bc", "cb", "co", "oc"):
        for z in range(2):
            mask = np.isin(labels[z], groups[source]).astype(float)
            padded = np.pad(mask, reach, mode="symmetric")
            for y, x in np.ndindex(*mask.shape):
                if labels[z, y, x] in groups[target]:
                    patch = padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
                    total[z, y, x] += 0.882 * (patch * kernel).sum()
    top = total.max()
    expected = np.maximum(total - 0.25, 0) * top / (top - 0.25)
    found = weights.edge_preservation(labels, sigma=sigma)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.max() > 0.3 and abs(found.max() - top) < 1e-6


def test_published_diffusion_profile():
    u = weights.diffuse(_edge()[0] == 0)[4]
    # Simulated reach: two voxels above the threshold of 0.2.
    np.testing.assert_allclose(u[30:32] - 0.2, [0.354, 0.092], atol=1e-3)
    assert u[32] < 0.2
    np.testing.assert_array_equal(u[:30], 1)


def test_diffusion_against_stepping_in_fourier_space():
    source = np.random.default_rng(0).random((16, 19)) < 0.1
    kernel = np.zeros(source.shape)
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            kernel[y, x] = -1 if (y, x) == (0, 0) else 1 / 6 if y * x == 0 else 1 / 12
    u = source.astype(float)
    for _ in range(50):
        u = 0.98 * (u + 0.2 * np.fft.ifft2(np.fft.fft2(kernel) * np.fft.fft2(u)).real)
        u = np.clip(u, 0, None)
        u[source] = 1
    np.testing.assert_allclose(weights.diffuse(source), u, atol=1e-12)


def test_diffusive_weights_scale_each_border_over_the_volume():
    labels = np.concatenate([_edge(), _edge(at=20)])
    labels[1, :, 40:] = 3
    pairs = weights.borders_between([0], [1], [3])
    assert pairs == (((0,), (1,)), ((1,), (0,)), ((1,), (3,)), ((3,), (1,)))
    found = weights.diffusive_edge_weights(labels, borders=pairs)
    middle = found[0, 4]
    np.testing.assert_allclose(middle[30:33], [25, 25 * 0.092 / 0.354, 0], atol=0.1)
    np.testing.assert_allclose(middle[29], 25, atol=0.1)
    for pair in pairs:
        alone = weights.diffusive_edge_weights(labels, borders=[pair])
        assert alone.max() == pytest.approx(25)
        assert not alone[~np.isin(labels, pair[1])].any()


@pytest.mark.parametrize("edges", [weights.edge_preservation, weights.diffusive_edge_weights])
def test_error_weights_sum_their_parts_and_skip_what_is_not_labelled(edges):
    labels = _random_labels(3)
    found = weights.error_weights(labels, 7, edges=edges)
    parts = 0.01 + weights.class_balance(labels, 7) + edges(labels)
    np.testing.assert_allclose(found, np.where(labels < 0, 0, parts), rtol=1e-6)
    assert (labels < 0).any() and not found[labels < 0].any() and found[labels >= 0].min() > 0.01
    assert found.dtype == np.float32


def test_relabelling_with_its_borders_changes_nothing():
    labels = _random_labels(1)
    order = np.array([3, 5, 0, 1, 2, 4, 6, -1])  # the last entry keeps -1
    borders = weights.borders_between([3], [5], [0, 1, 2, 4, 6])
    np.testing.assert_allclose(
        weights.error_weights(labels, 7),
        weights.error_weights(order[labels].astype(np.int32), 7, borders=borders),
        rtol=1e-5,
    )


def test_no_border_no_weight_and_empty_groups():
    uniform = np.ones((2, 9, 9), np.int32)
    assert not weights.edge_preservation(uniform).any()
    assert not weights.diffusive_edge_weights(uniform).any()
    assert weights.borders_between([0], [1], []) == (((0,), (1,)), ((1,), (0,)))


def test_errors():
    with pytest.raises(ValueError, match=r"-1 \.\.\. 2"):
        weights.class_balance(np.full((1, 2, 2), 3), 3)
    with pytest.raises(ValueError, match="expected integers"):
        weights.edge_preservation(np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="expected integers"):
        weights.diffusive_edge_weights(np.zeros((2, 2), int))


def test_real_labels_weigh_borders_most():
    default = Path(__file__).parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("DENSEJAX_DATA", default)) / "tiny" / "platelet_crop.npz"
    if not path.exists():
        pytest.skip(f"no {path}; set DENSEJAX_DATA to the folder of real data")
    labels = np.load(path)["labels"][:2].astype(np.int32)
    found = weights.error_weights(labels, 7)
    same = np.ones(labels.shape, bool)
    for axis in (1, 2):
        for shift in range(-7, 8):
            same &= np.roll(labels, shift, axis) == labels
    near = ~same[:, 8:-8, 8:-8]
    inner = (found - weights.class_balance(labels, 7))[:, 8:-8, 8:-8]
    assert np.isfinite(found).all() and inner[near].mean() > 0.05
    assert inner[near].mean() > 3 * inner[~near].mean()
