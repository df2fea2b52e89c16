"""The optimiser against TensorFlow's formula and PyTorch's, the schedule against the thesis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.optim.tensorflow_forms import (
    PUBLISHED_BETA1,
    PUBLISHED_BETA2,
    PUBLISHED_DECAY_STEPS,
    scale_by_adam_epsilon_hat,
    staircase_decay,
)


def gradients(seed, steps=12, size=5, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=(steps, size))).astype(np.float32)


def tensorflow_adam(parameters, all_gradients, *, rate, b1, b2, epsilon):
    """The documented update of ``tf.train.AdamOptimizer``, in float64.

    lr_t = lr * sqrt(1 - b2^t) / (1 - b1^t);  p -= lr_t * m / (sqrt(v) + epsilon)
    """
    p = np.asarray(parameters, np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, gradient in enumerate(np.asarray(all_gradients, np.float64), start=1):
        m = b1 * m + (1 - b1) * gradient
        v = b2 * v + (1 - b2) * gradient**2
        p = p - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + epsilon)
    return p


def descend(parameters, all_gradients, *, rate, **options):
    transformation = scale_by_adam_epsilon_hat(**options)
    state = transformation.init(parameters)
    for gradient in all_gradients:
        updates, state = transformation.update(jnp.asarray(gradient), state)
        parameters = parameters - rate * updates
    return parameters, state


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("options", [{}, {"b1": 0.9, "b2": 0.999, "epsilon": 1e-3}])
def test_adam_is_tensorflows(scale, options):
    start, all_gradients = jnp.float32([1, -2, 3, 0, 5]), gradients(0, scale=scale)
    found, state = descend(start, all_gradients, rate=0.01, **options)
    defaults = {"b1": PUBLISHED_BETA1, "b2": PUBLISHED_BETA2, "epsilon": 1e-7}
    expected = tensorflow_adam(start, all_gradients, rate=0.01, **(defaults | options))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert int(state.count) == len(all_gradients)


def test_epsilon_is_added_before_the_bias_correction():
    # With gradients of epsilon's own size the two forms differ by far more than rounding.
    optax = pytest.importorskip("optax")
    start, all_gradients = jnp.zeros(5), gradients(1, steps=1, scale=1e-7)
    ours, _ = descend(start, all_gradients, rate=1.0, epsilon=1e-7)
    other = optax.scale_by_adam(PUBLISHED_BETA1, PUBLISHED_BETA2, 1e-7)
    theirs, _ = other.update(jnp.asarray(all_gradients[0]), other.init(start))
    assert np.max(np.abs(ours + theirs)) > 0.1


def test_adam_agrees_with_torch_where_epsilon_does_not_matter():
    torch = pytest.importorskip("torch")
    start, all_gradients = np.float32([1, -2, 3, 0, 5]), gradients(2, scale=10)
    theirs = torch.nn.Parameter(torch.tensor(start))
    betas = (PUBLISHED_BETA1, PUBLISHED_BETA2)
    optimiser = torch.optim.Adam([theirs], lr=0.01, betas=betas, eps=1e-7)
    for gradient in all_gradients:
        theirs.grad = torch.tensor(gradient)
        optimiser.step()
    ours, _ = descend(jnp.asarray(start), all_gradients, rate=0.01, epsilon=1e-7)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)


def test_adam_agrees_with_torch_at_one_step_with_epsilon_scaled():
    # epsilon-hat is sqrt(1 - b2^t) of the other form's epsilon, at each step t.
    torch = pytest.importorskip("torch")
    epsilon, gradient = 0.5, gradients(3, steps=1)
    theirs = torch.nn.Parameter(torch.zeros(5))
    betas = (PUBLISHED_BETA1, PUBLISHED_BETA2)
    optimiser = torch.optim.Adam([theirs], lr=0.01, betas=betas, eps=epsilon)
    theirs.grad = torch.tensor(gradient[0])
    optimiser.step()
    hat = epsilon * np.sqrt(1 - PUBLISHED_BETA2)
    ours, _ = descend(jnp.zeros(5), gradient, rate=0.01, epsilon=float(hat))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)


def test_adam_without_gradients_stays():
    found, _ = descend(jnp.ones(5), np.zeros((3, 5), np.float32), rate=0.1)
    np.testing.assert_array_equal(found, np.ones(5))


def test_adam_maps_over_instances(assert_modes_agree):
    transformation = scale_by_adam_epsilon_hat()

    def two_steps(first, second):
        state = transformation.init(first)
        _, state = transformation.update(first, state)
        return transformation.update(second, state)[0]

    assert_modes_agree(two_steps, *({"a": g} for g in gradients(4, steps=2)))


def test_the_schedule_of_the_thesis():
    # 40 epochs of 828 windows from 1e-3: the last update is made at 2.38e-5.
    np.testing.assert_allclose(staircase_decay(1e-3, 33119), 2.38e-5, rtol=2e-3)
    assert staircase_decay(1e-3, 0) == np.float32(1e-3)


def test_stairs_begin_where_the_published_interval_says():
    # 10^3.4 = 2511.886...: step 2511 is on the first stair, 2512 on the second, 5024 on the third.
    assert int(PUBLISHED_DECAY_STEPS) == 2511
    for step, stairs in ((2511, 0), (2512, 1), (5023, 1), (5024, 2)):
        np.testing.assert_allclose(staircase_decay(1.0, step), 0.75**stairs, rtol=1e-6)


def test_each_instance_has_its_own_schedule():
    rates, steps = np.float32([1e-3, 1e-2, 1e-1]), np.int32([0, 9, 25])
    factors = np.float32([1.0, 0.5, 0.1])
    found = staircase_decay(rates, steps, rate=factors, every=np.float32([10, 3, 10]))
    expected = rates * factors.astype(np.float64) ** np.array([0, 3, 2])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = [
        staircase_decay(r, s, rate=f, every=e)
        for r, s, f, e in zip(rates, steps, factors, (10, 3, 10), strict=True)
    ]
    np.testing.assert_allclose(jnp.stack(alone), found, rtol=1e-6)
    assert found.dtype == jnp.float32


def test_a_factor_of_one_is_no_decay():
    steps = jnp.arange(0, 50000, 777)
    assert np.all(jax.vmap(lambda s: staircase_decay(0.1, s, rate=1.0))(steps) == np.float32(0.1))
