"""Log-volumes: balls and ellipsoids of known volume, and how far an estimate is to be trusted."""

import dataclasses
import math
from decimal import Decimal, getcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.landscape.basins import Radii, log_volume, radii
from densejax.landscape.basins.volume import effective_samples, log_unit_ball

KEY = jax.random.key(1)


def exact_log_ball(n):
    """Log of pi^m / m! for n = 2m, of 2 (2 pi)^m / (1 3 5 ... n) for n = 2m + 1."""
    m = n // 2
    if n % 2 == 0:
        return m * math.log(math.pi) - sum(math.log(i) for i in range(1, m + 1))
    odd = sum(math.log(i) for i in range(1, n + 1, 2))
    return math.log(2) + m * math.log(2 * math.pi) - odd


def of(log_radius, n, **options):
    return log_volume(KEY, log_radius, dimension=n, **options)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 3000, 269_722])
def test_balls(n):
    assert log_unit_ball(n) == pytest.approx(exact_log_ball(n), rel=1e-12, abs=1e-12)
    found = of(np.full(7, np.log(0.9)), n)
    expected = exact_log_ball(n) + n * math.log(0.9)
    bounds = (found.estimate, found.jensen, found.maximum, *found.interval)
    assert bounds == pytest.approx([expected] * 5, rel=1e-12)
    assert found.effective_samples == pytest.approx(7) and found.radius == pytest.approx(0.9)
    assert found.jensen_error == pytest.approx(0, abs=1e-9 * n)


def test_small_volumes_are_what_geometry_says():
    assert math.exp(of(np.log([2.0]), 1).estimate) == pytest.approx(4)
    assert math.exp(of(np.log([2.0]), 2).estimate) == pytest.approx(4 * math.pi)
    assert math.exp(of(np.log([2.0]), 3).estimate) == pytest.approx(32 / 3 * math.pi)
    # Half of the directions to 1, half to 2: the mean of the areas.
    assert math.exp(of(np.log([1.0, 2.0]), 2).estimate) == pytest.approx(2.5 * math.pi)
    assert math.exp(of([-np.inf, np.log(2.0)], 2).estimate) == pytest.approx(2 * math.pi)


@pytest.mark.parametrize("n", [10, 269_722, 11_173_962])
def test_the_mean_of_powers_against_decimals(n):
    getcontext().prec = 60
    logs = np.random.default_rng(0).normal(-0.1, 3 / n, 50)
    mean = sum((Decimal(float(log)) * n).exp() for log in logs) / 50
    found = of(logs, n)
    assert found.estimate - log_unit_ball(n) == pytest.approx(float(mean.ln()), rel=1e-12, abs=1e-7)
    weights = [float((Decimal(float(log)) * n - mean.ln()).exp()) for log in logs]
    by_hand = sum(weights) ** 2 / sum(w * w for w in weights)
    assert found.effective_samples == pytest.approx(by_hand, rel=1e-6)


def test_effective_samples_by_hand():
    assert effective_samples(np.log([1, 1, 2])) == pytest.approx(16 / 6)
    assert effective_samples([-1e9, -1e9]) == pytest.approx(2)
    assert effective_samples([0, -1e6, -np.inf]) == 1


@pytest.mark.parametrize("n", [2, 50, 5000])
def test_bounds_interval_and_curve(n):
    logs = np.random.default_rng(n).normal(0, 0.05, 300)
    found = of(logs, n, bootstrap=100)
    low, high = found.interval
    assert found.jensen < found.estimate < found.maximum
    assert low <= high <= found.maximum
    curve = found.curve
    assert curve.sizes.tolist() == [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300]
    ends = (curve.low[-1], curve.estimate[-1], curve.high[-1])
    assert ends == pytest.approx([found.estimate] * 3, rel=1e-9)
    assert np.all(curve.low <= curve.estimate) and np.all(curve.estimate <= curve.high)
    # One direction's estimates are the terms themselves.
    assert curve.high[0] <= found.maximum
    spread = n * logs.std(ddof=1) / np.sqrt(300)
    assert found.jensen_error == pytest.approx(spread)
    # Where the estimate is well determined its bootstrap is the textbook's interval of a mean.
    if n == 2:
        powers = np.exp(2 * logs)
        error = powers.std() / powers.mean() / np.sqrt(300)
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.25)
        assert low < found.estimate < high


def test_interval_and_curve_hang_on_no_order_of_the_directions():
    logs = np.random.default_rng(0).normal(0, 0.05, 40)
    one, two = of(logs, 30), of(logs[::-1], 30)
    assert one.interval == two.interval
    np.testing.assert_array_equal(one.curve.low, two.curve.low)


def test_scaled_radii_shift_every_number():
    logs = np.random.default_rng(0).normal(0, 0.05, 40)
    one, two = of(logs, 30), of(logs + math.log(2), 30)
    shift = 30 * math.log(2)
    for name in ("estimate", "jensen", "maximum"):
        assert getattr(two, name) == pytest.approx(getattr(one, name) + shift, rel=1e-9)
    assert two.interval == pytest.approx([end + shift for end in one.interval], rel=1e-9)
    assert two.effective_samples == pytest.approx(one.effective_samples)
    assert two.radius == pytest.approx(2 * one.radius)
    units = of(logs, 30, log_scale=shift)
    assert units.estimate == pytest.approx(two.estimate) and units.radius == pytest.approx(
        one.radius
    )
    wider = logs.copy()
    wider[3] += 0.1
    assert of(wider, 30).estimate > one.estimate and of(wider, 30).jensen > one.jensen


def test_one_direction_decides_in_many_dimensions():
    """log r of deviation 0.01 at n = 269 722: the estimate misses the truth by millions."""
    n = 269_722
    logs = np.random.default_rng(0).normal(0, 0.01, 3000)
    found = of(logs, n)
    truth = log_unit_ball(n) + (n * 0.01) ** 2 / 2
    assert found.effective_samples < 1.5 and truth - found.estimate > 3e6
    assert "not to be trusted" in str(found)
    assert abs(found.jensen - log_unit_ball(n)) < 3 * found.jensen_error
    # 10 000 decimal orders are a ratio of radii of 1.089.
    more = of(logs + math.log(1.089), n)
    assert more.log10 - found.log10 == pytest.approx(1e4, rel=0.005)


def test_the_volume_below_a_quadratic():
    """Of sum a (w - c)^2 / 2 < cutoff: an ellipsoid whose volume is known, in Euclid's units."""
    curvature = np.float32([[1, 2], [3, 1], [2, 2], [1, 1], [2, 3]])
    centre = np.float32([[1, 9], [2, -3], [0.5, 4], [1, 1], [1, 6]])

    def loss(params):
        return jnp.sum(jnp.asarray(curvature) * (params["w"] - jnp.asarray(centre)) ** 2) / 2

    found = radii(
        KEY,
        loss,
        {"w": jnp.asarray(centre)},
        directions=4000,
        geometry="ellipsoid",
        chunk=64,
        progress=False,
    )
    assert found.dimension == 10 and found.log_scale != 0
    volume = log_volume(KEY, found)
    exact = exact_log_ball(10) + 5 * math.log(0.2) - np.log(curvature.astype(np.float64)).sum() / 2
    low, high = volume.interval
    assert high - low < 1 and low - 0.1 < exact < high + 0.1
    assert volume.jensen < exact < volume.maximum
    relative = log_volume(KEY, found, log_scale=0.0)
    assert volume.estimate - relative.estimate == pytest.approx(found.log_scale)


@pytest.mark.parametrize("n", [10, 3000, 300_000])
def test_the_volume_below_a_round_quadratic(n):
    minimum = {"w": np.linspace(-1, 1, n, dtype=np.float32).reshape(-1, 10)}

    def loss(params):
        return jnp.sum((params["w"] - jnp.asarray(minimum["w"])) ** 2)

    options = {"geometry": "ellipsoid", "normalise": "none", "first_step": 0.01, "span": 1.0}
    found = radii(KEY, loss, minimum, directions=4, chunk=2, progress=False, **options)
    volume = log_volume(KEY, found)
    expected = exact_log_ball(n) + n / 2 * math.log(0.1)
    assert volume.estimate == pytest.approx(expected, rel=1e-5)
    assert volume.radius == pytest.approx(math.sqrt(0.1), rel=1e-5)


def some_radii(**changes):
    one = Radii(
        radius=np.array([0.5, 1.0]),
        censored=np.array([False, True]),
        slope=np.array([1.0, np.nan]),
        cutoff=0.1,
        centre_loss=0.0,
        span=1.0,
        first_step=1e-3,
        growth=1.25,
        dimension=2,
    )
    return dataclasses.replace(one, **changes)


def test_censored_radii_are_told():
    found = log_volume(KEY, some_radii())
    assert found.censored == 1 and found.estimate == pytest.approx(math.log(math.pi * 0.625))
    assert "a lower bound: 1 of 2 directions reach the span" in str(found)
    assert str(found).startswith("log-volume 0.674726 nats (10^0.29303), 95 % bootstrap ")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (some_radii(censored=np.array([True, True])), {}, "all 2 radii are censored at the span 1"),
        (some_radii(dimension=0), {}, "dimension is 0"),
        ([0.0], {}, "dimension is None"),
        ([], {"dimension": 2}, r"shape \[0\]: expected \[k\]"),
        ([0.0, np.nan], {"dimension": 2}, "log radius 1 is nan"),
        ([np.inf], {"dimension": 2}, "log radius 0 is inf"),
        ([-np.inf], {"dimension": 2}, "all 1 radii are 0"),
        ([0.0], {"dimension": 2, "bootstrap": 0}, "bootstrap=0"),
        ([0.0], {"dimension": 2, "level": 1.0}, "level=1"),
    ],
)
def test_bad_radii_are_refused(given, options, message):
    with pytest.raises(ValueError, match=message):
        log_volume(KEY, given, **options)


def test_the_key_decides():
    logs = np.random.default_rng(0).normal(0, 0.05, 40)
    one, again, other = (log_volume(jax.random.key(k), logs, dimension=9) for k in (0, 0, 1))
    assert one.interval == again.interval != other.interval
    assert one.estimate == other.estimate
