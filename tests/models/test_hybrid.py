"""Hybrid2D3D: published parameter counts, window arithmetic, and the forward pass in PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import drawn, shapes

from densejax.models.hybrid import Hybrid2D3D, parameter_group
from densejax.models.layers import Conv, UpConv

SMALL = {"classes": 3, "width": 2}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 10_267_022),
        ({"upsample_z": True}, 10_283_406),
        ({"conv3d_in_2d": False}, 9_916_238),
        ({"conv3d_in_2d": False, "upsample_z": True}, 9_932_622),
        ({"pyramid": False}, 7_882_311),
    ],
)
def test_published_parameter_counts(options, count):
    (logits, out), variables = shapes(Hybrid2D3D(**options), (5, 300, 300), batch=1)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(variables)) == count
    assert logits.shape == out["logits_2d"].shape == (1, 5, 296, 296, 7)


@pytest.mark.parametrize("window", [(5, 300, 300), (1, 8, 8), (2, 64, 96), (3, 15, 71), (4, 9, 23)])
@pytest.mark.parametrize("upsample_z", [False, True])
def test_output_window_is_the_shape_of_the_logits(window, upsample_z):
    model = Hybrid2D3D(**SMALL, upsample_z=upsample_z)
    (logits, _), _ = shapes(model, window, batch=2)
    assert logits.shape == (2, *model.output_window(window), 3)


@pytest.mark.parametrize("window", [(5, 7, 64), (0, 64, 64), (64, 64)])
def test_an_invalid_window_is_named(window):
    with pytest.raises(ValueError, match=str(window[-1])):
        Hybrid2D3D().output_window(window)


def test_input_of_several_channels_is_refused():
    with pytest.raises(ValueError, match=r"\[b, z, y, x, 1\]"):
        Hybrid2D3D(**SMALL).init(jax.random.key(0), jnp.zeros((1, 1, 8, 8, 2)))


@pytest.mark.parametrize("layer", [Conv(6, (3, 3, 3)), UpConv(6, (1, 2, 2))])
def test_initialisation_is_glorot_uniform_with_zero_bias(layer):
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 2, 2, 50)))["params"]
    kernel = np.asarray(params["kernel"])
    bound = math.sqrt(6 / (math.prod(kernel.shape[:3]) * (50 + 6)))
    assert not params["bias"].any()
    assert np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def torch_forward(torch, params, x, upsample_z):
    """The network of the publication, written once more in PyTorch; x [b, 1, z, y, x]."""
    functional = torch.nn.functional

    def crop(t, size):
        corner = [(n - m) // 2 for n, m in zip(t.shape[2:], size, strict=True)]
        (a, b, c), (z, y, w) = corner, size
        return t[:, :, a : a + z, b : b + y, c : c + w]

    def conv(t, p, relu=True):
        kernel = p["kernel"].permute(4, 3, 0, 1, 2)
        t = functional.conv3d(t, kernel, p["bias"], padding=[k // 2 for k in kernel.shape[2:]])
        return functional.relu(t) if relu else t

    def block(t, name):
        for i in range(len(params[name])):
            t = conv(t, params[name][f"conv{i}"])
        return t

    def up(t, name):
        kernel = params[name]["kernel"].permute(3, 4, 0, 1, 2)
        bias = params[name]["bias"]
        return functional.conv_transpose3d(t, kernel, bias, stride=kernel.shape[2:])

    def pool(t):
        return functional.max_pool3d(t, (1, 2, 2))

    skips = [block(x, "encoder0")]
    for scale in (1, 2):
        skips.append(block(pool(skips[-1]), f"encoder{scale}"))
    t = block(pool(skips[-1]), "bottom")
    for scale in (2, 1, 0):
        t = up(t, f"up{scale}")
        t = block(torch.cat([crop(skips[scale], t.shape[2:]), t], 1), f"decoder{scale}")
    logits_2d = conv(t, params["predictor_2d"])
    t = torch.cat([t, logits_2d], 1)
    fine = block(t, "pyramid0")
    coarse = up(conv(block(pool(t), "pyramid1"), params["pyramid_narrow"]), "pyramid_up")
    coarse = coarse[:, :, 2:7] if upsample_z else coarse  # The planes that the release keeps of 10.
    return conv(fine + coarse, params["predictor_3d"]), logits_2d


@pytest.mark.parametrize("upsample_z", [False, True])
def test_forward_and_gradient_agree_with_torch(upsample_z):
    torch = pytest.importorskip("torch")
    model = Hybrid2D3D(**SMALL, upsample_z=upsample_z)
    x = jax.random.normal(jax.random.key(1), (1, 5, 30, 37, 1))
    params = drawn(model, x)["params"]
    # Biases above zero keep the logits alive under their ReLU.
    params = jax.tree.map(lambda p: p + 0.05 if p.ndim == 1 else p, params)
    theirs = jax.tree.map(lambda p: torch.tensor(np.asarray(p), requires_grad=True), params)
    there = torch.tensor(np.asarray(x).transpose(0, 4, 1, 2, 3))

    def loss(p):
        logits, out = model.apply({"params": p}, x)
        return (logits**2).mean() + (out["logits_2d"] ** 2).mean(), (logits, out["logits_2d"])

    (value, ours), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = torch_forward(torch, theirs, there, upsample_z)
    assert value > 0
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(
            a, b.detach().numpy().transpose(0, 2, 3, 4, 1), rtol=1e-4, atol=1e-5
        )
    sum((b**2).mean() for b in expected).backward()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-3, atol=1e-4),
        gradient,
        theirs,
    )


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_logits_float32():
    x = jax.random.normal(jax.random.key(1), (1, 2, 16, 16, 1))
    half = Hybrid2D3D(**SMALL, dtype=jnp.bfloat16)
    full = Hybrid2D3D(**SMALL)
    variables = drawn(half, x)
    logits, out = jax.jit(half.apply)(variables, x)
    stored = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {p.dtype for p in jax.tree.leaves(stored)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32 and out["features"].dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, jax.jit(full.apply)(variables, x)[0], atol=0.05)


def test_logit_relu_only_clips_the_last_logits_without_a_pyramid():
    x = jax.random.normal(jax.random.key(1), (1, 1, 16, 16, 1))
    linear = Hybrid2D3D(**SMALL, pyramid=False, logit_relu=False)
    clipped = Hybrid2D3D(**SMALL, pyramid=False)
    variables = drawn(linear, x)
    logits = jax.jit(linear.apply)(variables, x)[0]
    assert float(logits.min()) < 0
    np.testing.assert_array_equal(jax.jit(clipped.apply)(variables, x)[0], jnp.maximum(logits, 0))


def test_parameter_groups_split_the_published_counts():
    _, variables = shapes(Hybrid2D3D(), (5, 64, 64), batch=1)
    counts = {"2d": 0, "3d": 0, "head": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        counts[parameter_group(path)] += math.prod(leaf.shape)
    # Blocks of the published table: pyramid scales and merge, two predictors, the rest.
    assert counts == {"2d": 7_881_856, "3d": 344_064 + 2_023_744 + 16_448, "head": 910}
    assert parameter_group(("up2", "kernel")) == "2d"
    assert parameter_group(("up2", "kernel"), released_tf=True) is None
    with pytest.raises(ValueError, match="elsewhere/kernel"):
        parameter_group(("elsewhere", "kernel"))
