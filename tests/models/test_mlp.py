"""MLP: the same numbers as PyTorch's layers, what `out` holds, dropout as passes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.models.mlp import CHEN_WIDTHS, MLP, SWISS_ROLL_WIDTHS


def count(model, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), x)
    return sum(math.prod(p.shape) for p in jax.tree.leaves(tree))


@pytest.mark.parametrize("widths", [(5,), (7, 6, 5, 4, 3, 2), ()])
def test_matches_pytorch(widths):
    torch = pytest.importorskip("torch")
    model = MLP(classes=4, widths=widths)
    x = np.random.default_rng(0).standard_normal((3, 6, 2, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)
    modules, d = [torch.nn.Flatten()], 12
    for i, width in enumerate((*widths, 4)):
        last = i == len(widths)
        layer = torch.nn.Linear(d, width)
        p = variables["params"]["head" if last else f"linear{i}"]
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.asarray(p["kernel"]).T))
            layer.bias.copy_(torch.tensor(np.asarray(p["bias"])))
        modules += [layer] if last else [layer, torch.nn.ReLU()]
        d = width
    net = torch.nn.Sequential(*modules)
    assert count(model, x.shape) == sum(p.numel() for p in net.parameters())
    logits, out = model.apply(variables, x)
    np.testing.assert_allclose(logits, net(torch.tensor(x)).detach(), rtol=1e-5, atol=1e-6)
    features = net[:-1](torch.tensor(x)).detach()
    np.testing.assert_allclose(out["features"], features, rtol=1e-5, atol=1e-6)


def test_chens_widths():
    for width in CHEN_WIDTHS:
        assert count(MLP(widths=(width,)), (1, 28, 28, 1)) == 785 * width + 11 * width - width + 10


def test_draws_are_within_the_bounds():
    params = MLP(widths=(50,)).init(jax.random.key(1), jnp.zeros((1, 100)))["params"]
    for name, d in (("linear0", 100), ("head", 50)):
        for leaf in jax.tree.leaves(params[name]):
            assert float(jnp.abs(leaf).max()) <= 1 / math.sqrt(d) + 1e-6
        spread = float(params[name]["kernel"].std())
        assert spread == pytest.approx(1 / math.sqrt(3 * d), rel=0.1)
    head = MLP(widths=(50,), head_std=1e-3).init(jax.random.key(1), jnp.zeros((1, 9)))
    assert float(head["params"]["head"]["kernel"].std()) == pytest.approx(1e-3, rel=0.1)
    assert not head["params"]["head"]["bias"].any()


def test_glorot_draws():
    for name in ("glorot_uniform", "glorot_normal"):
        model = MLP(classes=300, widths=(200,), initialiser=name)
        params = model.init(jax.random.key(2), jnp.zeros((1, 100)))["params"]
        for layer, fans in (("linear0", (100, 200)), ("head", (200, 300))):
            kernel = np.asarray(params[layer]["kernel"])
            std = math.sqrt(2 / sum(fans))
            assert kernel.std() == pytest.approx(std, rel=0.03)
            # A uniform ends at sqrt(3) deviations; the normal is cut at 2 of the uncut one.
            edge = math.sqrt(3) if name == "glorot_uniform" else 2 / 0.87962566103423978
            assert 0.97 * edge < abs(kernel).max() / std < edge * (1 + 1e-6)
            assert not params[layer]["bias"].any()


def test_numbers_of_parameters_of_the_thesis():
    shapes = {SWISS_ROLL_WIDTHS: 3614, (25,) * 4: 2051}
    for widths, expected in shapes.items():
        assert count(MLP(classes=1, widths=widths), (1, 2)) == expected


def test_dropout_gives_stochastic_passes_with_the_right_mean():
    model = MLP(widths=(64,), dropout=0.5)
    x = jnp.ones((1, 3))
    variables = model.init(jax.random.key(0), x)

    def one(key):
        return model.apply(variables, x, train=True, rngs={"dropout": key})[1]["features"]

    passes = jax.vmap(one)(jax.random.split(jax.random.key(1), 400))
    still = model.apply(variables, x)[1]["features"]
    np.testing.assert_allclose(passes.mean(0), still, rtol=0.3, atol=1e-2)
    assert 0.4 < float((passes[..., still[0] > 0] == 0).mean()) < 0.6


def test_modes(assert_modes_agree):
    model = MLP(classes=3, widths=(4,))
    x = jax.random.normal(jax.random.key(0), (2, 5))
    assert_modes_agree(model.apply, model.init(jax.random.key(1), x), x)


def test_errors():
    with pytest.raises(ValueError, match=r"expected an input \[b, ...\], found shape \(3,\)"):
        MLP().init(jax.random.key(0), jnp.zeros(3))
    with pytest.raises(ValueError, match="dropout is 1"):
        MLP(dropout=1.0).init(jax.random.key(0), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="initialiser 'he'"):
        MLP(initialiser="he").init(jax.random.key(0), jnp.zeros((1, 3)))
