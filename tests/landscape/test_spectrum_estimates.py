"""Trace and spectral density by random probes, against dense Hessians and formulas."""

import jax
import numpy as np
from hessians import (
    by_matrix,
    loss_fn,
    parameters,
    quadratic,
    symmetric,
)

from densejax.landscape import curvature
from densejax.landscape.curvature import SpectralDensity, lanczos, trace

# ---- trace and density ----


def test_the_trace_is_within_its_standard_errors(dense):
    exact, key = np.trace(dense), jax.random.key(5)
    for method, probes in (("hutchinson", 400), ("hutch++", 60)):
        mean, error = trace(key, loss_fn, parameters(), probes=probes, method=method)
        assert 0 < error < exact and abs(mean - exact) < 5 * error
    # The variance of one probe of random signs, by Hutchinson.
    squares = np.sum(dense**2) - np.sum(np.diag(dense) ** 2)
    _, error = trace(key, loss_fn, parameters(), probes=400)
    np.testing.assert_allclose(error, np.sqrt(2 * squares / 400), rtol=0.25)


def test_hutch_plus_plus_errs_less_where_few_eigenvalues_stand_out():
    values = np.concatenate([np.full(95, 0.01), [10, 20, 30, 40, 50]])
    loss, params = quadratic(symmetric(values)[0])
    key = jax.random.key(0)
    plain = trace(key, loss, params, probes=30)
    better = trace(key, loss, params, probes=30, method="hutch++")
    assert better.standard_error < 0.01 * plain.standard_error
    np.testing.assert_allclose(better.mean, values.sum(), rtol=1e-4)


def test_the_trace_of_a_diagonal_hessian_is_exact_by_two_probes():
    values = np.random.default_rng(0).normal(size=31).astype(np.float32)
    loss, params = quadratic(np.diag(values))
    # Where there are more directions to find than dimensions, nothing is left to estimate.
    for method, probes in (("hutchinson", 2), ("hutch++", 96)):
        mean, error = trace(jax.random.key(0), loss, params, probes=probes, method=method)
        np.testing.assert_allclose(mean, values.astype(np.float64).sum(), rtol=1e-5)
        assert error < 1e-5


def test_the_density_integrates_to_one_and_has_the_moments_of_the_spectrum(dense):
    values = np.linalg.eigvalsh(dense)
    found = curvature.spectral_density(
        jax.random.key(0), loss_fn, parameters(), probes=60, steps=99
    )
    assert found.dimension == len(values) and found.nodes.shape == (60, len(values))
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-9)
    grid = found.grid()
    density, error = found.density(grid)
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, atol=1e-6)
    assert (density >= 0).all() and (error >= 0).all()
    for order in (1, 2, 3, 4):
        mean, standard = found.moment(order)
        expected = np.mean(values**order)
        assert abs(mean - expected) < 5 * standard and standard < abs(expected)
    np.testing.assert_allclose(np.trapezoid(grid * density, grid), found.moment(1)[0], rtol=1e-6)


def test_in_full_the_density_is_the_broadened_spectrum_as_its_probes_see_it(dense):
    values, vectors = np.linalg.eigh(dense)
    n, key = len(values), jax.random.key(1)
    found = curvature.spectral_density(key, loss_fn, parameters(), probes=3, steps=n)
    width = 0.03 * np.ptp(values)
    grid = found.grid(points=200, width=width)
    bumps = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) / width / np.sqrt(2 * np.pi)
    each = []
    for index in range(3):
        probe = np.float64(jax.random.normal(jax.random.fold_in(key, index), (n,)))
        each.append(bumps @ (vectors.T @ probe / np.linalg.norm(probe)) ** 2)
    density, error = found.density(grid, width=width)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * density.max()}
    np.testing.assert_allclose(density, np.mean(each, axis=0), **tolerance)
    np.testing.assert_allclose(error, np.std(each, axis=0, ddof=1) / np.sqrt(3), **tolerance)


def test_the_share_below_a_value_is_the_weight_there():
    weights = np.array([[0.1, 0.4, 0.5], [0.3, 0.3, 0.4]])
    found = SpectralDensity(np.array([[-1.0, 0, 2], [-3, -2, 5]]), weights, 7)
    np.testing.assert_allclose(found.share_below(0), [0.35, 0.25])
    np.testing.assert_allclose(found.moment(1), [(0.9 + 0.5) / 2, 0.2])
    alone = SpectralDensity(found.nodes[:1], weights[:1], 7)
    assert np.isnan(alone.moment(1)[1]) and np.isnan(alone.density([0.0])[1]).all()


def test_a_probes_quadrature_is_exact_to_its_order():
    matrix = symmetric(np.linspace(-1, 2, 30))[0].astype(np.float32)
    key = jax.random.key(0)
    nodes, weights = lanczos.quadrature(key, by_matrix, matrix, 30, probes=1, steps=4)
    probe = np.asarray(jax.random.normal(jax.random.fold_in(key, 0), (30,)), np.float64)
    probe /= np.linalg.norm(probe)
    for order in range(8):
        expected = probe @ np.linalg.matrix_power(matrix.astype(np.float64), order) @ probe
        np.testing.assert_allclose(np.sum(weights * nodes**order), expected, rtol=1e-5, atol=1e-5)
