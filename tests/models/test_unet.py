"""UNet: published count and window, window arithmetic, the forward pass in PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import drawn, shapes

from densejax.models.layers import draw_parameters
from densejax.models.unet import UNet

SMALL = {"classes": 3, "width": 2}


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_published_parameter_count(padding):
    _, variables = shapes(UNet(padding=padding), (1, 572, 572))
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(variables)) == 31_030_983


@pytest.mark.parametrize(("width", "scales", "count"), [(16, 5, 1_940_834), (8, 4, 120_690)])
def test_counts_of_label_less(width, scales, count):
    model = UNet(2, width=width, scales=scales, padding="SAME", logit_relu=False, drop=0.5)
    (logits, out), variables = shapes(model, (1, 128, 128))
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(variables)) == count
    assert logits.shape == (2, 1, 128, 128, 2)
    assert out["bottleneck"].shape[2:] == (128 >> (scales - 1),) * 2 + (width << (scales - 1),)


def test_published_window():
    assert UNet().output_window((1, 572, 572)) == (1, 388, 388)


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({}, (1, 572, 572)),
        ({}, (2, 189, 203)),
        ({"padding": "SAME"}, (3, 16, 67)),
        ({"padding": "SAME", "scales": 3}, (1, 5, 7)),
        ({"scales": 3}, (1, 45, 60)),
        ({"scales": 1}, (1, 5, 6)),
    ],
)
def test_output_window_is_the_shape_of_the_logits(options, window):
    model = UNet(**SMALL, **options)
    (logits, _), _ = shapes(model, window)
    assert logits.shape == (2, *model.output_window(window), 3)


@pytest.mark.parametrize("scales", [2, 3])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_exactly_the_windows_that_vanish_are_refused(scales, padding):
    """A window is refused where some layer has nothing left, by the sizes of each layer in turn."""

    def survives(n):
        lost, sizes = (4 if padding == "VALID" else 0), []
        for scale in range(scales):
            n = (n // 2 if scale else n) - lost
            sizes.append(n)
        for skip in sizes[-2::-1]:
            n = min(2 * n, skip) - lost
            sizes.append(n)
        return min(sizes) > 0

    model = UNet(**SMALL, scales=scales, padding=padding)
    for n in range(1, 60):
        if survives(n):
            assert model.output_window((1, n, 80))[1] > 0
        else:
            with pytest.raises(ValueError, match=f"1, {n}, 80"):
                model.output_window((1, n, 80))


def test_forward_agrees_with_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    model = UNet(**SMALL, scales=3, logit_relu=False)
    x = jax.random.normal(jax.random.key(1), (1, 2, 51, 60, 1))
    variables = drawn(model, x)
    ours, _ = jax.jit(model.apply)(variables, x)
    params = jax.tree.map(lambda p: torch.tensor(np.asarray(p)), variables["params"])

    def block(t, name):
        for p in params[name].values():
            t = functional.relu(functional.conv2d(t, p["kernel"][0].permute(3, 2, 0, 1), p["bias"]))
        return t

    t = torch.tensor(np.asarray(x)[0].transpose(0, 3, 1, 2))
    skips = [block(t, "encoder0")]
    for scale in (1, 2):
        skips.append(block(functional.max_pool2d(skips[-1], 2), f"encoder{scale}"))
    t = skips.pop()
    for scale in (1, 0):
        p, skip = params[f"up{scale}"], skips.pop()
        t = functional.conv_transpose2d(t, p["kernel"][0].permute(2, 3, 0, 1), p["bias"], stride=2)
        a, b = ((n - m) // 2 for n, m in zip(skip.shape[2:], t.shape[2:], strict=True))
        skip = skip[:, :, a : a + t.shape[2], b : b + t.shape[3]]
        t = block(torch.cat([skip, t], 1), f"decoder{scale}")
    p = params["predictor"]
    t = functional.conv2d(t, p["kernel"][0].permute(3, 2, 0, 1), p["bias"])
    np.testing.assert_allclose(ours[0], t.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "instance", "group"])
def test_planes_are_labelled_each_for_itself(norm):
    model = UNet(**SMALL, scales=2, padding="SAME", norm=norm, logit_relu=False)
    x = jax.random.normal(jax.random.key(1), (1, 3, 8, 8, 1))
    variables = draw_parameters(jax.random.key(0), model, x.shape)
    apply = jax.jit(lambda x: model.apply(variables, x)[0])
    alone = x.at[:, ::2].set(jax.random.normal(jax.random.key(2), (1, 2, 8, 8, 1)))
    found, other = apply(x), apply(alone)
    np.testing.assert_allclose(found[:, 1], other[:, 1], rtol=1e-5, atol=1e-6)
    assert np.abs(found - other)[:, ::2].max() > 1e-2


def test_dropout_acts_in_training_and_where_asked_and_only_there():
    model = UNet(**SMALL, scales=3, padding="SAME", logit_relu=False, channels=3, drop=0.5)
    x = jax.random.normal(jax.random.key(1), (1, 1, 20, 21, 3))
    variables = draw_parameters(jax.random.key(0), model, x.shape)

    @jax.jit
    def run(keys):
        ways = ({"train": True}, {"dropout": True}, {"train": True, "dropout": False}, {})
        once = [
            jax.vmap(lambda key, way=way: model.apply(variables, x, rngs={"dropout": key}, **way))(
                keys
            )
            for way in ways
        ]
        return once, model.clone(drop=0.0).apply(variables, x, train=True)

    found, expected = run(jax.random.split(jax.random.key(0), 2))
    for (logits, out), drops in zip(found, (True, True, False, False), strict=True):
        assert np.array_equal(logits[0], logits[1]) != drops
        assert np.allclose(logits[0], expected[0], rtol=1e-5, atol=1e-6) != drops
        zeros = np.mean(np.asarray(out["bottleneck"]) == 0)
        base = np.mean(np.asarray(expected[1]["bottleneck"]) == 0)
        assert abs(zeros - (1 + base) / 2 if drops else zeros - base) < 0.1
    with pytest.raises(ValueError, match="dropout is 1; expected"):
        shapes(UNet(drop=1), (1, 572, 572))


@pytest.mark.parametrize(("scales", "dropped"), [(5, 4), (4, 4), (3, 4), (2, 3)])
def test_dropout_sits_behind_the_two_deepest_blocks_and_those_opposite(scales, dropped):
    model = UNet(2, width=2, scales=scales, padding="SAME", drop=0.5)
    x = jax.ShapeDtypeStruct((1, 1, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def draws(rate):
        network = model.clone(drop=rate)
        traced = jax.make_jaxpr(
            lambda v, x, key: network.apply(v, x, train=True, rngs={"dropout": key})
        )
        return str(traced(variables, x, jax.random.key(0))).count("name=_bernoulli")

    assert draws(0.0) == 0
    assert draws(0.5) == dropped
