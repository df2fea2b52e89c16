"""Optimisers by name against PyTorch, schedules against optax, the average against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densejax.optim.named import moving_average, named_optimiser, schedule_factor

STEPS = 8


def parameters():
    random = np.random.default_rng(0)
    return {
        "conv": {
            "kernel": random.normal(size=(3, 4)).astype(np.float32),
            "bias": random.normal(size=4).astype(np.float32),
        },
        "norm": {"scale": random.uniform(1, 2, 4).astype(np.float32)},
    }


def gradients(scale=1.0):
    random = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda leaf: (scale * random.normal(size=leaf.shape)).astype(np.float32), parameters()
        )
        for _ in range(STEPS)
    ]


def descend(optimiser, all_gradients, rates):
    params = jax.tree.map(jnp.asarray, parameters())
    state, update = optimiser.init(params), jax.jit(optimiser.update)
    for gradient, rate in zip(all_gradients, rates, strict=True):
        directions, state = update(gradient, state, params)
        params = jax.tree.map(lambda p, d, rate=rate: p - rate * d, params, directions)
    return params


def descend_in_torch(torch, make, all_gradients, rates, *, decay, clip=0.0):
    leaves, structure = jax.tree.flatten(parameters())
    leaves = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in leaves]
    groups = [
        {"params": [leaf for leaf in leaves if leaf.ndim > 1], "weight_decay": decay},
        {"params": [leaf for leaf in leaves if leaf.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = make(groups)
    for gradient, rate in zip(all_gradients, rates, strict=True):
        for leaf, own in zip(leaves, jax.tree.leaves(gradient), strict=True):
            leaf.grad = torch.tensor(own)
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves, clip)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    return jax.tree.unflatten(structure, [leaf.detach().numpy() for leaf in leaves])


def makers(torch):
    return {
        "adamw": lambda groups: torch.optim.AdamW(groups, lr=1.0),
        "sgd": lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.99, nesterov=True),
        "momentum": lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9),
    }


@pytest.mark.parametrize("clip", [0.0, 0.7])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum"])
def test_optimisers_agree_with_torch(name, decay, clip):
    torch = pytest.importorskip("torch")
    # Norms of the gradients on both sides of the clip.
    given = [
        jax.tree.map(lambda leaf, n=n: leaf * 0.4**n, gradient)
        for n, gradient in enumerate(gradients())
    ]
    norms = [
        np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradient))) for gradient in given
    ]
    assert max(norms) > 0.7 > min(norms)
    rates = [0.05 / (1 + n) for n in range(STEPS)]
    found = descend(named_optimiser(name, weight_decay=decay, clip=clip), given, rates)
    expected = descend_in_torch(torch, makers(torch)[name], given, rates, decay=decay, clip=clip)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum"])
def test_kernels_decay_and_vectors_do_not(name):
    nothing = [jax.tree.map(np.zeros_like, gradient) for gradient in gradients()]
    found = descend(named_optimiser(name, weight_decay=0.1), nothing, [0.5] * STEPS)
    before = parameters()
    np.testing.assert_array_equal(found["conv"]["bias"], before["conv"]["bias"])
    np.testing.assert_array_equal(found["norm"]["scale"], before["norm"]["scale"])
    kernel = np.abs(found["conv"]["kernel"])
    assert np.all(kernel < np.abs(before["conv"]["kernel"]))
    if name == "adamw":
        expected = np.abs(before["conv"]["kernel"]) * (1 - 0.5 * 0.1) ** STEPS
        np.testing.assert_allclose(kernel, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum"])
def test_the_weight_decay_of_an_instance_is_data(name):
    params = jax.tree.map(jnp.asarray, parameters())
    given = gradients()[:2]

    def run(decay):
        optimiser = named_optimiser(name, weight_decay=decay, clip=1.0)
        state, moved = optimiser.init(params), params
        for gradient in given:
            directions, state = optimiser.update(gradient, state, moved)
            moved = jax.tree.map(lambda p, d: p - 0.1 * d, moved, directions)
        return moved

    decays = np.float32([0.0, 0.1, 0.5])
    side_by_side = jax.jit(jax.vmap(run))(decays)
    for place, decay in enumerate(decays):
        jax.tree.map(
            lambda a, b, i=place: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            side_by_side,
            run(float(decay)),
        )


def test_unknown_names_and_negative_clips_are_refused():
    with pytest.raises(ValueError, match=r"'adam'.*adamw, sgd or momentum"):
        named_optimiser("adam")
    with pytest.raises(ValueError, match=r"clip is -1"):
        named_optimiser("sgd", clip=-1)
    with pytest.raises(ValueError, match=r"'linear'.*polynomial, cosine, constant"):
        schedule_factor("linear", 0, steps=10, warmup=0)


OPTAX = {
    "polynomial": optax.polynomial_schedule(1.0, 0.0, power=0.9, transition_steps=40),
    "cosine": optax.cosine_decay_schedule(1.0, 40),
    "constant": optax.constant_schedule(1.0),
}


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("name", OPTAX)
def test_schedules_are_those_of_optax_times_a_rise(name, warmup):
    steps = np.arange(50)  # beyond the end, too
    found = np.array([schedule_factor(name, int(t), steps=40, warmup=warmup) for t in steps])
    rise = np.minimum(1, (steps + 1) / warmup) if warmup else 1
    expected = np.array([OPTAX[name](t) for t in steps]) * rise
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.min() >= 0 and found.max() <= 1
    if name != "constant":
        np.testing.assert_allclose(found[40:], 0, atol=1e-6)


def test_the_lengths_of_a_schedule_are_data():
    """One compiled program for instances of other lengths, and for every step of each."""
    steps, lengths = np.arange(12), np.float32([5, 12])
    for name in OPTAX:
        mapped = jax.jit(
            jax.vmap(
                jax.vmap(
                    lambda t, n, name=name: schedule_factor(name, t, steps=n, warmup=n / 3),
                    (0, None),
                ),
                (None, 0),
            )
        )(steps, lengths)
        assert mapped.dtype == jnp.float32
        for row, length in zip(mapped, lengths.tolist(), strict=True):
            one = [schedule_factor(name, t, steps=length, warmup=length / 3) for t in range(12)]
            np.testing.assert_allclose(row, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.9, 0.999])
def test_the_moving_average_against_a_loop(decay):
    random = np.random.default_rng(0)
    values = random.normal(size=(30, 3))
    average = {"a": jnp.asarray(random.normal(size=3), jnp.float32)}
    expected = np.array(average["a"], float)
    step = jax.jit(lambda a, p, t: moving_average(a, {"a": p}, step=t, decay=decay))
    for t, value in enumerate(values):
        average = step(average, np.float32(value), t)
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * value
        np.testing.assert_allclose(average["a"], expected, rtol=1e-4, atol=1e-6)
    if decay == 0:
        np.testing.assert_allclose(average["a"], values[-1], rtol=1e-6)


def test_an_average_of_equal_parameters_forgets_where_it_began():
    average = {"a": jnp.full(2, 100.0)}
    for t in range(20):
        average = moving_average(average, {"a": jnp.ones(2)}, step=t, decay=0.9999)
    # The factors (1 + t) / (10 + t) multiply to 9! * 20! / 29!.
    left = np.prod([(1 + t) / (10 + t) for t in range(20)])
    np.testing.assert_allclose(average["a"], 1 + 99 * left, rtol=1e-4)
    assert left < 1e-6
