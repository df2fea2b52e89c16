"""Optimisers against PyTorch step by step, the proximal step against dense and released solves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from densejax.optim.method import Method, line_searched, sharpness_aware
from densejax.optim.proximal import conjugate_gradients, proximal
from densejax.optim.published import OTHERS, THESIS, setting
from densejax.optim.torch_forms import averaged, quasi_newton, scale_by_amsgrad

STEPS = 25


def problem(seed=0, size=6):
    """A quadratic with an offset for each step, as batches have: matrix, offsets [t, d], start."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, size))
    matrix = (root @ root.T / size + np.eye(size)).astype(np.float32)
    offsets = rng.standard_normal((STEPS, size)).astype(np.float32)
    return matrix, offsets, (3 * rng.standard_normal(size)).astype(np.float32)


def objective(matrix, offset, params):
    # A tree of two leaves of different shape, and a quartic term so that curvature changes.
    x = jnp.concatenate([params["a"].ravel(), params["b"]])
    y = x - offset
    return y @ matrix @ y / 2 + 0.05 * jnp.sum(y**4), x


def tree(x):
    return {"a": jnp.asarray(x[:4]).reshape(2, 2), "b": jnp.asarray(x[4:])}


def ours(method: Method, rates, *, steps=STEPS, compiled=True):
    """All iterates [t, d] of a method."""
    matrix, offsets, start = problem()
    step = partial(method.step)

    def one(params, state, offset, rate):
        return step(partial(objective, matrix, offset), params, state, rate)[:2]

    one = jax.jit(one) if compiled else one
    params, found = tree(start), []
    state = method.init(params)
    for offset, rate in zip(offsets[:steps], rates, strict=False):
        params, state = one(params, state, offset, jnp.float32(rate))
        found.append(ravel_pytree(params)[0])
    return np.stack(found), state


def torchs(torch, make, rates, *, steps=STEPS, fixed_rate=False):
    matrix, offsets, start = problem()
    x = torch.nn.Parameter(torch.tensor(start))
    optimiser = make([x])
    found = []
    for offset, rate in zip(offsets[:steps], rates, strict=False):
        if not fixed_rate:
            optimiser.param_groups[0]["lr"] = rate

        def closure(offset=offset):
            optimiser.zero_grad()
            y = x - torch.tensor(offset)
            loss = y @ torch.tensor(matrix) @ y / 2 + 0.05 * (y**4).sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        found.append(x.detach().numpy().copy())
    return np.stack(found), optimiser


def falling(rate):
    return [rate * (0.1 if t >= 15 else 1) for t in range(STEPS)]


PAIRS = {
    "sgd": lambda o: partial(o.SGD, lr=0.05),
    "momentum": lambda o: partial(o.SGD, lr=0.01, momentum=0.9),
    "nesterov": lambda o: partial(o.SGD, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda o: partial(o.Adam, lr=0.01, betas=(0.9, 0.999)),
    "adadelta": lambda o: partial(o.Adadelta, lr=5, rho=0.5),
    "adagrad": lambda o: partial(o.Adagrad, lr=0.025),
    "adamax": lambda o: partial(o.Adamax, lr=5e-4, betas=(0.9, 0.9)),
    "asgd": lambda o: partial(o.ASGD, lr=0.1, lambd=1e-4, alpha=0.75),
    "rmsprop": lambda o: partial(o.RMSprop, lr=5e-4, alpha=0.72),
    "amsgrad": lambda o: partial(o.Adam, lr=5e-4, betas=(0.9, 0.99), amsgrad=True),
    "rprop": lambda o: partial(o.Rprop, lr=1e-3),
}


@pytest.mark.parametrize("name", PAIRS)
def test_published_settings_step_as_torch_does(name):
    torch = pytest.importorskip("torch")
    chosen = setting(name)
    rates = falling(chosen.rate)
    found, _ = ours(chosen.method, rates)
    expected, _ = torchs(torch, PAIRS[name](torch.optim), rates)
    assert np.abs(expected[-1] - problem()[2]).max() > 1e-3, "the optimiser went nowhere"
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_asgd_averages_as_torch_does():
    torch = pytest.importorskip("torch")
    options = {"lambd": 0.05, "alpha": 0.75, "t0": 5}
    expected, optimiser = torchs(torch, partial(torch.optim.ASGD, lr=0.1, **options), falling(0.1))
    found, state = ours(averaged(decay=0.05, power=0.75, average_after=5), falling(0.1))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    (theirs,) = optimiser.state.values()
    average = ravel_pytree(state["average"])[0]
    np.testing.assert_allclose(average, theirs["ax"].numpy(), rtol=1e-6, atol=1e-6)
    assert np.abs(average - found[-1]).max() > 1e-2


@pytest.mark.parametrize("memory", [3, 100])
def test_lbfgs_is_torchs(memory):
    torch = pytest.importorskip("torch")
    make = partial(torch.optim.LBFGS, lr=0.9, history_size=memory, max_iter=4)
    # Float32 differences of nearly equal gradients amplify rounding, so that few steps compare.
    expected, _ = torchs(torch, make, [0.9] * 6, steps=6)
    found, _ = ours(quasi_newton(memory=memory, iterations=4), [0.9] * 6, steps=6)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    first, _ = torchs(torch, make, [0.9], steps=1)
    np.testing.assert_allclose(found[:1], first, rtol=1e-5, atol=1e-5)


def test_lbfgs_stops_at_a_minimum_and_leaves_it():
    method = quasi_newton(memory=3, iterations=50)
    matrix, offsets, _ = problem()
    params = tree(offsets[0])
    made = method.step(partial(objective, matrix, offsets[0]), params, method.init(params), 0.9)
    np.testing.assert_array_equal(ravel_pytree(made.params)[0], offsets[0])
    assert int(made.state["count"]) == 0
    # From elsewhere fifty iterations are more than enough, and end early.
    made = method.step(
        partial(objective, matrix, offsets[0]), tree(offsets[1]), method.init(params), 1.0
    )
    np.testing.assert_allclose(ravel_pytree(made.params)[0], offsets[0], atol=1e-3)
    assert 3 < int(made.state["count"]) < 50


def test_the_broken_closure_of_the_thesis_is_not_what_we_run():
    # One iteration a batch is a gradient step; twenty must do better on the same batch.
    matrix, offsets, start = problem()
    losses = []
    for iterations in (1, 20):
        method = quasi_newton(memory=10, iterations=iterations)
        loss_of = partial(objective, matrix, offsets[0])
        made = method.step(loss_of, tree(start), method.init(tree(start)), 0.9)
        losses.append(float(loss_of(made.params)[0]))
    assert losses[1] < 0.1 * losses[0]


def test_zoom_line_search_converges_on_one_batch():
    method = line_searched(memory=5)
    matrix, offsets, start = problem()
    params, state = tree(start), method.init(tree(start))
    step = jax.jit(lambda p, s: method.step(partial(objective, matrix, offsets[0]), p, s, 1.0)[:2])
    for _ in range(12):
        params, state = step(params, state)
    np.testing.assert_allclose(ravel_pytree(params)[0], offsets[0], atol=1e-3)


def test_sam_takes_the_gradient_uphill():
    matrix, offsets, start = problem()
    method, loss_of = (
        sharpness_aware(optax.identity(), radius=0.3),
        partial(objective, matrix, offsets[0]),
    )
    made = method.step(loss_of, tree(start), method.init(tree(start)), 0.1)

    def gradient(x):
        return ravel_pytree(jax.grad(lambda p: loss_of(p)[0])(tree(x)))[0]

    plain = gradient(start)
    uphill = gradient(start + 0.3 * plain / np.linalg.norm(plain))
    np.testing.assert_allclose(ravel_pytree(made.params)[0], start - 0.1 * uphill, rtol=1e-5)
    assert float(made.loss) == pytest.approx(float(loss_of(tree(start))[0]))


def test_why_two_are_not_optaxs():
    # A large first gradient bounds its AMSGrad's steps for ever, and its Rprop is one step late.
    gradients = np.array([10.0] + [0.1] * 400, np.float32)
    steps = []
    for transform in (scale_by_amsgrad(b1=0.9, b2=0.99), optax.scale_by_amsgrad(0.9, 0.99)):
        state = transform.init(jnp.zeros(()))
        update = jax.jit(transform.update)
        for gradient in gradients:
            direction, state = update(jnp.float32(gradient), state)
        steps.append(float(direction))
    assert steps[0] > 8 * steps[1]
    late = optax.scale_by_rprop(1e-3)
    assert float(late.update(jnp.float32(1), late.init(jnp.zeros(())))[0]) == 0


def test_settings():
    assert len(THESIS) == 12 and not set(THESIS) & set(OTHERS)
    for name in (*THESIS, *OTHERS):
        chosen = setting(name, lbfgs_memory=2, lbfgs_iterations=2)
        params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
        made = chosen.method.step(
            lambda p: (sum(jnp.sum(x**2) for x in jax.tree.leaves(p)), None),
            params,
            chosen.method.init(params),
            chosen.rate,
        )
        assert jax.tree.structure(made.params) == jax.tree.structure(params)
        assert float(made.params["b"][0]) < 1, name
    assert [name for name in THESIS if setting(name).proximal] == ["proxprop"]
    with pytest.raises(ValueError, match="'adamw': expected one of sgd, momentum"):
        setting("adamw")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: averaged(decay=-1), "decay is -1"),
        (lambda: quasi_newton(memory=0), "memory is 0"),
        (lambda: quasi_newton(iterations=0), "iterations is 0"),
        (lambda: sharpness_aware(optax.identity(), radius=0), "radius is 0"),
        (lambda: proximal(product, tau=0), "tau 0"),
        (lambda: proximal(product, iterations=0), "iterations 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- the proximal step ----


def product(params, x):
    return x @ params["kernel"] + params["bias"]


def convolution(params, x):
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=dims)
    return y + params["bias"]


def layer_problem(kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "product":
        layer, shape, x = product, (4, 3), rng.standard_normal((7, 4))
    else:
        layer, shape, x = convolution, (3, 3, 2, 3), rng.standard_normal((2, 4, 4, 2))
    params = {"kernel": rng.standard_normal(shape), "bias": rng.standard_normal(3)}
    params, x = jax.tree.map(jnp.float32, (params, x))
    gradient = jnp.float32(0.3 * rng.standard_normal(layer(params, x).shape))
    return layer, params, x, gradient


def dense_step(layer, params, x, gradient, tau):
    """theta - argmin over X of |A X - (z - g)|^2 / 2 + |X - theta|^2 / (2 tau), by numpy.solve."""
    flat, unravel = ravel_pytree(params)
    matrix = np.asarray(jax.jacobian(lambda v: layer(unravel(v), x).ravel())(flat), np.float64)
    target = matrix @ np.asarray(flat, np.float64) - np.ravel(gradient)
    left = matrix.T @ matrix + np.eye(flat.size) / tau
    right = matrix.T @ target + np.asarray(flat, np.float64) / tau
    return unravel(jnp.float32(flat - np.linalg.solve(left, right)))


@pytest.mark.parametrize("kind", ["product", "convolution"])
@pytest.mark.parametrize("by_unit", [True, False])
@pytest.mark.parametrize("tau", [0.05, 0.5, 5.0])
def test_the_proximal_step_solves_its_problem(kind, by_unit, tau):
    layer, params, x, gradient = layer_problem(kind)
    exact = {"iterations": 200, "tolerance": 0.0, "epsilon": 0.0, "by_unit": by_unit}
    wrapped = proximal(layer, tau=tau, **exact)
    values, pull = jax.vjp(wrapped, params, x)
    np.testing.assert_array_equal(values, layer(params, x))
    step, input_gradient = pull(gradient)
    expected = dense_step(layer, params, x, gradient, tau)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), step, expected
    )
    plain = jax.vjp(layer, params, x)[1](gradient)[1]
    np.testing.assert_allclose(input_gradient, plain, rtol=1e-6)


def test_a_small_tau_is_a_gradient_step():
    layer, params, x, gradient = layer_problem("convolution")
    step = jax.vjp(proximal(layer, tau=1e-5, epsilon=0), params, x)[1](gradient)[0]
    plain = jax.vjp(layer, params, x)[1](gradient)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 1e-5 * b, rtol=2e-3), step, plain)


def released_solve(matrix, right, start, *, tolerance, iterations, epsilon):
    """Conjugate gradients as the released code of ProxProp writes them, columns side by side."""
    x = start.copy()
    residual = right - matrix @ x
    direction = residual.copy()
    square = (residual**2).sum(0)
    scale, made = square.mean(), 0
    while True:
        made += 1
        image = matrix @ direction
        length = square / ((direction * image).sum(0) + epsilon)
        x = x + direction * length
        if made == iterations:
            break
        residual = residual - image * length
        new = (residual**2).sum(0)
        if new.max() < tolerance**2 * scale:
            break
        direction = residual + direction * (new / (square + epsilon))
        square = new
    return x, made


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_unfinished_solves_are_those_of_the_released_code(iterations):
    # Products by unit: the released code starts at theta, ours solves for the difference.
    layer, params, x, gradient = layer_problem("product")
    step = jax.vjp(proximal(layer, iterations=iterations), params, x)[1](gradient)[0]
    inputs = np.concatenate([x, np.ones((7, 1))], axis=1).astype(np.float64)
    theta = np.concatenate([params["kernel"], params["bias"][None]]).astype(np.float64)
    matrix = inputs.T @ inputs + 2 * np.eye(5)
    right = inputs.T @ (inputs @ theta - gradient) + 2 * theta
    solved, _ = released_solve(
        matrix, right, theta, tolerance=1e-2, iterations=iterations, epsilon=1e-6
    )
    found = np.concatenate([step["kernel"], step["bias"][None]])
    np.testing.assert_allclose(found, theta - solved, rtol=1e-3, atol=1e-5)


def test_conjugate_gradients_stop_early():
    rng = np.random.default_rng(3)
    root = rng.standard_normal((8, 8))
    matrix = jnp.float32(root @ root.T + np.eye(8))
    right = jnp.float32(rng.standard_normal((8, 2)))
    made = []

    def run(tolerance):
        def apply(v):
            jax.debug.callback(lambda: made.append(1))
            return matrix @ v

        made.clear()
        found = conjugate_gradients(
            apply, right, iterations=60, tolerance=tolerance, epsilon=0.0, by_unit=True
        )
        jax.effects_barrier()
        return found, len(made)

    loose, few = run(0.3)
    tight, many = run(1e-4)
    assert few < many < 60
    solved = np.linalg.solve(np.asarray(matrix, np.float64), np.asarray(right, np.float64))
    np.testing.assert_allclose(tight, solved, rtol=1e-3, atol=1e-4)
    assert np.abs(loose - solved).max() > 1e-3


def test_proximal_steps_map_over_instances(assert_modes_agree):
    layer, params, x, gradient = layer_problem("product")

    def step(p, g):
        return jax.vjp(proximal(layer), p, x)[1](g)[0]

    assert_modes_agree(step, params, gradient, rtol=1e-3, atol=1e-5)
