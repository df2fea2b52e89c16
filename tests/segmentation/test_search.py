"""Random architectures: what is drawn, and that one setting's range leaves the others alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from densejax.segmentation.search import Ranges, draw_architecture

WINDOW = (5, 96, 64)
RANGES = Ranges()


@pytest.fixture(scope="module")
def drawn():
    keys = [jax.random.fold_in(jax.random.key(0), seed) for seed in range(300)]
    return [draw_architecture(key, RANGES, window=WINDOW) for key in keys]


def test_settings_are_spread_evenly_over_their_ranges(drawn):
    rows = [one.settings() for one in drawn]
    for name in ("poolings", "width", "cubes"):
        low, high = getattr(RANGES, name)
        counts = np.bincount([row[name] - low for row in rows], minlength=high - low + 1)
        assert counts.size == high - low + 1
        assert chisquare(counts).pvalue > 1e-3
    blocks = np.concatenate([[*one.encoder, one.bottom, *one.decoder] for one in drawn])
    assert chisquare(np.bincount(blocks, minlength=7)[1:]).pvalue > 1e-3
    for name in ("learning_rate", "l2"):
        low, high = np.log(getattr(RANGES, name))
        places = (np.log([row[name] for row in rows]) - low) / (high - low)
        assert kstest(places, "uniform").pvalue > 1e-3


def test_windows_lose_no_voxel_and_reach_from_half_to_the_whole(drawn):
    sides = np.array([one.window for one in drawn])
    assert (sides[:, 0] == 5).all()
    assert (sides % [1, 16, 16] == 0).all()
    for side, expected in ((sides[:, 1], (48, 64, 80, 96)), (sides[:, 2], (32, 48, 64))):
        values, counts = np.unique(side, return_counts=True)
        assert tuple(values) == expected and chisquare(counts).pvalue > 1e-3
    for one in drawn[:20]:
        assert one.model(3).output_window(one.window) == one.window


def test_another_range_leaves_what_was_drawn_for_the_others():
    key = jax.random.fold_in(jax.random.key(0), 7)
    first = draw_architecture(key, RANGES, window=WINDOW)
    assert first == draw_architecture(key, RANGES, window=WINDOW)
    fixed = {"poolings": (2, 2), "width": (5, 5), "cubes": (1, 1), "l2": (1e-7, 1e-7)}
    other = draw_architecture(key, replace(RANGES, **fixed), window=WINDOW)
    assert (len(other.encoder), other.width, other.cubes, other.l2) == (2, 5, 1, 1e-7)
    assert other.learning_rate == first.learning_rate
    assert other.encoder == first.encoder[:2] and other.decoder == first.decoder[:2]
    assert other.bottom == first.bottom


@pytest.mark.parametrize(
    ("ranges", "window", "message"),
    [
        ({"poolings": (3,)}, WINDOW, r"--ranges.poolings takes smallest,largest; found \(3,\)"),
        ({"width": (8, 4)}, WINDOW, r"--ranges.width takes smallest,largest"),
        ({"convolutions": (0, 2)}, WINDOW, r"--ranges.convolutions begins at 0; expected 1"),
        ({"l2": (0.0, 1e-4)}, WINDOW, "--ranges.l2 begins at 0; expected more than 0"),
        ({"window": (0.5, 1.5)}, WINDOW, "--ranges.window ends at 1.5"),
        ({}, (5, 96, 8), "4 poolings need y and x >= 16"),
    ],
)
def test_ranges_from_which_nothing_can_be_drawn_are_named(ranges, window, message):
    with pytest.raises(ValueError, match=message):
        draw_architecture(jax.random.key(0), replace(RANGES, **ranges), window=window)
