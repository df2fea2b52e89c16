"""Hessian-vector products and eigenpairs, against dense Hessians, PyTorch and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from hessians import (
    ROWS,
    batch_loss,
    by_matrix,
    data,
    loss_fn,
    numbers,
    parameters,
    product_of,
    quadratic,
    symmetric,
    vector_like,
)

from densejax.landscape import curvature
from densejax.landscape.curvature import (
    SpectralDensity,
    hessian_plane,
    hessian_vector,
    lanczos,
    top_eigenpairs,
    trace,
)
from densejax.landscape.objective import over_batches
from densejax.models.resnet import ResNet

# ---- products ----


def test_products_are_those_of_the_dense_hessian(dense):
    params = parameters()
    vector = vector_like(params)
    product = numbers(product_of(params, vector))
    expected = dense @ numbers(vector)
    assert np.abs(product - expected).max() < 1e-4 * np.abs(expected).max()


def test_products_are_pytorchs():
    torch = pytest.importorskip("torch")
    params, rows = parameters(), data()
    vector = vector_like(params)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]

    def loss(in_bias, in_kernel, out_bias, out_kernel):
        hidden = torch.tanh(torch.tensor(rows["x"]).double() @ in_kernel + in_bias)
        labels = torch.tensor(rows["label"]).long()
        return torch.nn.functional.cross_entropy(hidden @ out_kernel + out_bias, labels)

    doubles = [
        tuple(torch.tensor(np.array(leaf, np.float64)) for leaf in jax.tree.leaves(tree))
        for tree in (params, vector)
    ]
    _, expected = torch.autograd.functional.hvp(loss, *doubles)
    product = jax.tree.leaves(product_of(params, vector))
    assert [leaf.shape for leaf in product] == shapes
    for found, wanted in zip(product, expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-6)


def test_central_differences_of_the_gradient_approach_it_quadratically():
    with jax.enable_x64(True):
        params = parameters(np.float64)
        vector = vector_like(params)
        gradient = jax.jit(jax.grad(loss_fn))
        product = numbers(product_of(params, vector))
        steps = np.logspace(-1, -3, 5)
        errors = []
        for step in steps:
            ends = [
                numbers(gradient(jax.tree.map(lambda p, v, s=s: p + s * v, params, vector)))
                for s in (step, -step)
            ]
            errors.append(np.linalg.norm((ends[0] - ends[1]) / (2 * step) - product))
    order = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(order - 2) < 0.05


def test_products_agree_in_every_mode(assert_modes_agree):
    params = parameters()
    assert_modes_agree(
        lambda p, v: hessian_vector(loss_fn, p, v), params, vector_like(params), rtol=1e-4
    )


def test_counters_are_held_still_and_have_no_curvature():
    params = parameters()
    counted = {"net": params, "step": np.int32(3)}

    def scaled(p):
        return {"loss": loss_fn(p["net"]) * p["step"], "step": p["step"]}

    vector = {"net": vector_like(params), "step": np.int32(5)}
    product = jax.jit(lambda p, v: hessian_vector(scaled, p, v))(counted, vector)
    plain = product_of(params, vector["net"])
    assert product["step"] == 0 and product["step"].dtype == jnp.int32
    np.testing.assert_allclose(numbers(product["net"]), 3 * numbers(plain), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_products_of_a_residual_network_are_differences_of_its_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, label = rng.normal(size=(8, 16, 16, 3)), rng.integers(0, 10, 8)
        net = ResNet(classes=10, blocks=(1, 1, 1), widths=(4, 8, 8), stem="cifar")
        variables = net.init(jax.random.key(0), x[:1])
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])

        def loss(params):
            logits, _ = net.apply({**variables, "params": params}, x)
            return -jax.nn.log_softmax(logits)[np.arange(8), label].mean()

        product = jax.jit(lambda p, v: hessian_vector(loss, p, v))
        first, second = vector_like(params, 0), vector_like(params, 1)
        found = numbers(product(params, first))
        other = numbers(product(params, second))
        np.testing.assert_allclose(found @ numbers(second), other @ numbers(first), rtol=1e-4)
        # Steps short enough to leave all but a few ReLUs on their side.
        gradient = jax.jit(jax.grad(loss))
        ends = [
            numbers(gradient(jax.tree.map(lambda p, v, s=s: p + s * v, params, first)))
            for s in (1e-5, -1e-5)
        ]
        difference = (ends[0] - ends[1]) / 2e-5
        assert np.linalg.norm(difference - found) < 0.02 * np.linalg.norm(found)


@pytest.mark.parametrize("rows", [7, 20, 41])
def test_batches_have_the_mean_of_the_whole(rows):
    params, vector = parameters(), vector_like(parameters())
    batched = over_batches(
        lambda p, batch: {"loss": batch_loss(p, batch), "rows": batch["label"].shape[0] * 1.0},
        data(),
        size=rows,
    )
    values = jax.jit(batched)(params)
    np.testing.assert_allclose(values["loss"], loss_fn(params), rtol=1e-6)
    whole, rest = divmod(ROWS, rows)
    np.testing.assert_allclose(values["rows"], (whole * rows**2 + rest**2) / ROWS, rtol=1e-6)
    found = jax.jit(lambda p, v: hessian_vector(batched, p, v))(params, vector)
    expected = numbers(product_of(params, vector))
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-4, atol=1e-6)


def test_a_product_over_batches_takes_the_memory_of_one():
    params, vector, rows = parameters(), vector_like(parameters()), data(20_000)

    def peak(loss):
        program = jax.jit(lambda p, v: hessian_vector(loss, p, v)).lower(params, vector).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert peak(over_batches(batch_loss, rows, size=200)) < 0.1 * peak(
        lambda p: batch_loss(p, rows)
    )


# ---- Lanczos ----


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("steps", [0, 12])
def test_eigenpairs_are_those_of_the_dense_hessian(dense, which, steps):
    values, vectors = np.linalg.eigh(dense)
    rank = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which]
    order = np.argsort(rank)[:3]
    found = top_eigenpairs(
        jax.random.key(0), loss_fn, parameters(), k=3, which=which, steps=steps, rtol=1e-5
    )
    norm = np.abs(values).max()
    assert found.converged.all()
    np.testing.assert_allclose(found.values, values[order], atol=1e-4 * norm)
    directions = np.concatenate(
        [np.asarray(v, np.float64).reshape(3, -1) for v in jax.tree.leaves(found.vectors)], axis=1
    )
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-5)
    overlap = np.abs(np.sum(directions * vectors[:, order].T, axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-3)
    true = np.linalg.norm(directions @ dense - found.values[:, None] * directions, axis=1)
    np.testing.assert_allclose(found.residuals, true, atol=2e-6 * norm)
    assert jax.tree.map(np.shape, found.vectors) == jax.tree.map(
        lambda leaf: (3, *np.shape(leaf)), parameters()
    )


def test_lanczos_agrees_with_scipys():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(size=395), [9, 8.9, 12, -7, 30]])
    matrix = symmetric(values)[0].astype(np.float32)
    operator = scipy.sparse.linalg.aslinearoperator(matrix.astype(np.float64))
    for which, name in (("largest", "LA"), ("smallest", "SA"), ("magnitude", "LM")):
        expected = scipy.sparse.linalg.eigsh(operator, 4, which=name, return_eigenvectors=False)
        found = lanczos.eigenpairs(
            jax.random.key(1), by_matrix, matrix, 400, k=4, which=which, steps=20, rtol=1e-5
        )
        assert found.converged.all()
        np.testing.assert_allclose(np.sort(found.values), np.sort(expected), atol=1e-4 * 30)
        assert np.abs(found.values - found.values[0]).max() > 0


def test_a_basis_stays_orthonormal_where_plain_lanczos_would_not():
    # Converged outliers are what makes the basis of a recursion without care turn back to them.
    values = np.concatenate([np.logspace(-3, 0, 295), [50, 100, 500, 1e3, 1e4]])
    matrix = symmetric(values)[0].astype(np.float32)
    begun = lanczos.start(jax.random.normal(jax.random.key(0), (300,)), steps=120)
    basis, projection, _ = jax.jit(
        lambda matrix, *begun: lanczos.extend(jax.random.key(1), by_matrix, matrix, *begun, 0)
    )(matrix, *begun)
    np.testing.assert_allclose(basis @ basis.T, np.eye(121), atol=2e-6)
    ritz = lanczos.ritz(projection)[0]
    # Each outlier is found once.
    np.testing.assert_allclose(ritz[-5:], values[-5:], atol=1e-4 * 1e4)
    assert ritz[-6] < 2


def test_equal_eigenvalues_are_found_as_often_as_they_are_there():
    matrix = np.diag(np.float32([3, 3, 3, 1, 1, 0, 0, 0, -2, -2]))
    found = lanczos.eigenpairs(jax.random.key(0), by_matrix, matrix, 10, k=5)
    np.testing.assert_allclose(found.values, [3, 3, 3, 1, 1], atol=1e-5)
    vectors = np.asarray(found.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(5), atol=1e-5)
    nothing = lanczos.eigenpairs(jax.random.key(0), by_matrix, 0 * matrix, 10, k=2, steps=5)
    assert not nothing.values.any() and nothing.converged.all()


def test_what_has_not_converged_is_said_and_its_residual_bounds_its_error():
    values = np.linspace(0, 1, 200)
    matrix = symmetric(values)[0].astype(np.float32)
    key = jax.random.key(0)
    found = lanczos.eigenpairs(key, by_matrix, matrix, 200, k=2, steps=8, restarts=1, rtol=1e-6)
    assert not found.converged.any() and (found.residuals > 1e-3).all()
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.abs(values - value).min() <= residual
    loss, params = quadratic(matrix)
    with pytest.raises(ValueError, match="residuals"):
        hessian_plane(key, loss, params, steps=8, restarts=0)


def test_restarts_need_no_more_memory_and_few_more_products():
    values = np.concatenate([np.linspace(0, 1, 490), np.linspace(1.1, 3, 10)])
    matrix = symmetric(values)[0].astype(np.float32)
    key = jax.random.key(0)
    thrifty = lanczos.eigenpairs(key, by_matrix, matrix, 500, k=4, steps=20, restarts=50)
    assert thrifty.converged.all() and thrifty.products < 200
    np.testing.assert_allclose(thrifty.values, values[:-5:-1], atol=1e-4)


def test_both_ends_of_the_spectrum_at_every_point(dense):
    values = np.linalg.eigvalsh(dense)
    n, key = len(values), jax.random.key(0)
    measures = curvature.convexity(key, loss_fn, steps=n)
    points = jax.tree.map(lambda leaf: np.stack([2 * leaf, leaf]), parameters())
    found = jax.tree.map(lambda leaf: leaf[1], jax.jit(jax.vmap(measures))(points))
    np.testing.assert_allclose(found["smallest"], values[0], atol=1e-4 * values[-1])
    np.testing.assert_allclose(found["largest"], values[-1], rtol=1e-4)
    np.testing.assert_allclose(found["ratio"], -values[0] / values[-1], rtol=1e-3)
    np.testing.assert_allclose(found["loss"], loss_fn(parameters()), rtol=1e-6)
    convex, params = quadratic(symmetric(np.linspace(1, 5, 11))[0])
    assert curvature.convexity(key, convex, steps=11)(params)["ratio"] == 0


@pytest.mark.parametrize(("ends", "expected"), [("largest", [9, 5]), ("both", [9, -7])])
def test_along_a_hessian_plane_second_derivatives_are_the_eigenvalues(ends, expected):
    loss, params = quadratic(symmetric(np.array([9, 5, 1, 0.5, -2, -7]))[0])
    plane = hessian_plane(jax.random.key(0), loss, params, ends=ends)
    for axis, value in zip(np.eye(2), expected, strict=True):
        at = [float(loss(plane.at(*(s * axis)))) for s in (1.0, 0.0, -1.0)]
        np.testing.assert_allclose(at[0] - 2 * at[1] + at[2], value, atol=1e-4)
    assert abs(plane.angle() - 90) < 1e-3
    np.testing.assert_allclose(np.linalg.norm(numbers(plane.first)), 1, rtol=1e-5)


# ---- what is refused ----


def test_what_does_not_fit_is_refused():
    params, key = parameters(), jax.random.key(0)
    with pytest.raises(ValueError, match="expected a 'loss'"):
        hessian_vector(lambda p: {"error": loss_fn(p)}, params, params)
    with pytest.raises(ValueError, match=r"loss .*\[4\]: expected a scalar"):
        hessian_vector(lambda p: p["out"]["bias"], params, params)
    with pytest.raises(ValueError, match=r"\['out'\]\['bias'\]"):
        hessian_vector(loss_fn, params, {**params, "out": {"kernel": params["out"]["kernel"]}})
    with pytest.raises(ValueError, match="k=0"):
        top_eigenpairs(key, loss_fn, params, k=0)
    with pytest.raises(ValueError, match="more steps than pairs"):
        top_eigenpairs(key, loss_fn, params, k=5, steps=5)
    with pytest.raises(ValueError, match="which='top'"):
        top_eigenpairs(key, loss_fn, params, which="top")
    with pytest.raises(ValueError, match="not finite"):
        top_eigenpairs(key, lambda p: jnp.sqrt(-jnp.abs(loss_fn(p))), params)
    with pytest.raises(ValueError, match="not finite"):
        trace(key, lambda p: jnp.sqrt(p["bias"] - 1).sum(), {"bias": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="no floating-point entry"):
        top_eigenpairs(key, loss_fn, {"step": np.int32(1)})
    with pytest.raises(ValueError, match="probes=5"):
        trace(key, loss_fn, params, probes=5, method="hutch++")
    with pytest.raises(ValueError, match="method='exact'"):
        trace(key, loss_fn, params, method="exact")
    with pytest.raises(ValueError, match="ends='top'"):
        hessian_plane(key, loss_fn, params, ends="top")
    with pytest.raises(ValueError, match="steps=0"):
        curvature.spectral_density(key, loss_fn, params, steps=0)
    with pytest.raises(ValueError, match="width=0"):
        SpectralDensity(np.zeros((1, 2)), np.full((1, 2), 0.5), 2).density([0.0], width=0)
    with pytest.raises(ValueError, match="rows in batches of 0"):
        over_batches(batch_loss, data(), size=0)
    with pytest.raises(ValueError, match="one number of rows"):
        over_batches(batch_loss, {"x": np.zeros((3, 2)), "label": np.zeros(2)}, size=2)
