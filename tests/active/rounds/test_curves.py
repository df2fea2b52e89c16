"""Statistics of rounds, against SciPy, NumPy and by hand."""

import numpy as np
import pytest
from scipy import stats

from densejax.active.rounds.curves import (
    alc,
    break_even,
    break_even_interval,
    class_entropy,
    imbalance_ratio,
    normalised_alc,
)


def test_balance_of_counts():
    counts = np.array([[10, 10, 10], [1, 2, 3], [0, 4, 4]])
    np.testing.assert_allclose(
        class_entropy(counts), [stats.entropy(row) for row in counts], rtol=1e-12
    )
    np.testing.assert_allclose(class_entropy(counts, relative=True)[0], 1)
    np.testing.assert_array_equal(imbalance_ratio(counts), [1, 3, np.inf])
    np.testing.assert_array_equal(imbalance_ratio(counts, empty="plus_one"), [1, 2, 5])
    assert np.isnan(class_entropy([0, 0])) and np.isnan(imbalance_ratio([0, 0]))
    with pytest.raises(ValueError, match="numbers from 0"):
        class_entropy([1, -1])


def test_areas():
    x, y = [50, 150, 450], np.array([0.5, 0.6, 0.7])
    area = 100 * 0.55 + 300 * 0.65
    np.testing.assert_allclose(alc(x, y), area / 400)
    found = normalised_alc(x, y, lowest=0.5, highest=0.75)
    np.testing.assert_allclose(found, (area - 0.5 * 400) / 0.25)
    np.testing.assert_allclose(alc(x, np.stack([y, y + 0.1])), [area / 400, area / 400 + 0.1])
    np.testing.assert_allclose(alc([5], [0.3]), 0.3)
    with pytest.raises(ValueError, match="ascending"):
        alc([1, 1], [0, 0])
    with pytest.raises(ValueError, match="above the lowest"):
        normalised_alc(x, y, lowest=0.5, highest=0.5)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ([0, 1, 2], 0),
        ([-1, 1, 2], 150),
        ([1, -1, 3], 225),
        ([-1, 0, 2], 200),
        ([1, 1, -1], np.inf),
        ([-1, 2, -1], np.inf),
    ],
)
def test_break_even_is_where_it_stays_above(gaps, expected):
    reference = np.array([5.0, 6, 7])
    assert break_even([100, 200, 300], reference + gaps, reference) == expected


def test_break_even_interval_holds_its_value_and_knows_certainty():
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 0.01, (5, 3))
    scores = reference + np.array([-1, 1, 2])
    found = break_even_interval([100, 200, 300], scores, reference)
    np.testing.assert_allclose([found.value, found.low, found.high], 150)
    noisy = break_even_interval([100, 200, 300], scores + rng.normal(0, 1, (5, 3)), reference)
    assert noisy.low <= noisy.value <= noisy.high
    never = break_even_interval([1, 2, 3], scores - 5, reference)
    assert never.value == never.low == np.inf
