"""Parameters of all layers from one draw, as flax's own initialisers; norms against PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from densejax.models.hybrid import Hybrid2D3D
from densejax.models.layers import Block, Conv, Norm, draw_parameters, group_count
from densejax.models.unet import UNet
from densejax.models.unet3d import UNet3D


def test_kernels_are_glorot_uniform_and_biases_zero():
    model = Hybrid2D3D(width=4)
    drawn = draw_parameters(jax.random.key(0), model, (1, 3, 16, 16, 1))
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3, 16, 16, 1)))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (drawn, expected))
    assert shapes[0] == shapes[1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(drawn):
        values = np.asarray(leaf)
        if path[-1].key == "bias":
            assert not values.any()
            continue
        *field, c_in, c_out = values.shape
        limit = np.sqrt(6 / (np.prod(field) * (c_in + c_out)))
        assert np.abs(values).max() <= limit
        if values.size > 200:
            law = stats.uniform(-limit, 2 * limit)
            assert stats.kstest(values.ravel(), law.cdf).pvalue > 1e-4


def test_two_kernels_of_one_network_share_no_numbers():
    drawn = draw_parameters(jax.random.key(1), Hybrid2D3D(width=4), (1, 3, 16, 16, 1))
    kernels = [np.asarray(k).ravel() for k in jax.tree.leaves(drawn) if np.asarray(k).any()]
    signs = np.concatenate([np.sign(k) * (np.abs(k) / np.abs(k).max()) for k in kernels])
    assert np.unique(signs).size > 0.99 * signs.size


def test_a_layer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="none of kernel, bias, scale and shift"):
        draw_parameters(jax.random.key(0), nn.PReLU(), (1, 3, 16, 16, 1))


def test_scales_are_drawn_as_one_and_shifts_as_zero():
    model = Conv(16, (1, 3, 3), norm="group")
    drawn = draw_parameters(jax.random.key(0), model, (1, 2, 4, 4, 1))["params"]
    np.testing.assert_array_equal(drawn["norm"]["scale"], np.ones(16))
    np.testing.assert_array_equal(drawn["norm"]["shift"], np.zeros(16))
    assert np.all(drawn["kernel"] != 0)
    stored = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 4, 4, 1)))["params"]
    assert jax.tree.structure(stored) == jax.tree.structure(drawn)


def block_of(channels, *, seed=0, mean=3.0, shape=(2, 3, 5, 4)):
    """Samples, planes and channels that differ in mean and in spread."""
    random = np.random.default_rng(seed)
    spread = random.uniform(0.5, 4, (shape[0], shape[1], 1, 1, channels))
    centre = mean * random.normal(size=spread.shape)
    return (centre + spread * random.normal(size=(*shape, channels))).astype(np.float32)


def affine(channels):
    random = np.random.default_rng(9)
    scale, shift = random.uniform(0.5, 2, channels), random.normal(size=channels)
    return {"scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}


def torch_norm(torch, kind, x, p, planes):
    """PyTorch's functional norm of [b, z, y, x, c], its planes as samples where asked."""
    there = torch.tensor(x).movedim(-1, 1)
    if planes:
        there = there.movedim(2, 1).flatten(0, 1)
    weight, bias = (torch.tensor(p[name]) for name in ("scale", "shift"))
    if kind == "instance":
        found = torch.nn.functional.instance_norm(there, weight=weight, bias=bias, eps=1e-5)
    else:
        groups = group_count(x.shape[-1])
        found = torch.nn.functional.group_norm(there, groups, weight, bias, eps=1e-5)
    found = found.unflatten(0, x.shape[:2]).movedim(1, 2) if planes else found
    return found.movedim(1, -1).numpy()


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(("kind", "channels"), [("instance", 5), ("group", 24), ("group", 6)])
def test_norms_agree_with_torch(kind, channels, planes):
    torch = pytest.importorskip("torch")
    x, p = block_of(channels), affine(channels)
    found = Norm(kind, planes=planes).apply({"params": p}, x)
    expected = torch_norm(torch, kind, x, p, planes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_gradients_of_a_norm_agree_with_torch():
    torch = pytest.importorskip("torch")
    x, p = block_of(16, seed=1), affine(16)
    weights = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)

    def loss(p, x):
        return jnp.sum(weights * Norm("group").apply({"params": p}, x))

    ours = jax.grad(loss, (0, 1))(p, jnp.asarray(x))
    there = torch.tensor(x, requires_grad=True)
    scale, shift = (torch.tensor(p[n], requires_grad=True) for n in ("scale", "shift"))
    found = torch.nn.functional.group_norm(there.movedim(-1, 1), 2, scale, shift, eps=1e-5)
    (torch.tensor(weights) * found.movedim(1, -1)).sum().backward()
    for mine, other in [(ours[0]["scale"], scale), (ours[0]["shift"], shift), (ours[1], there)]:
        np.testing.assert_allclose(mine, other.grad.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["instance", "group"])
def test_a_norm_of_planes_is_the_norm_of_each_plane_alone(kind):
    x, p = block_of(16), affine(16)
    norm = Norm(kind, planes=True)
    found = norm.apply({"params": p}, x)
    for z in range(x.shape[1]):
        alone = Norm(kind).apply({"params": p}, x[:, z : z + 1])
        np.testing.assert_allclose(found[:, z : z + 1], alone, rtol=1e-5, atol=1e-6)
    assert np.abs(found - Norm(kind).apply({"params": p}, x)).max() > 0.1


def test_no_norm_changes_nothing_and_has_no_parameters():
    x = block_of(3)
    found, variables = Norm("none").init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(found, x)
    assert not jax.tree.leaves(variables)


def test_a_constant_channel_becomes_the_shift():
    x, p = np.full((1, 2, 3, 3, 4), 7.0, np.float32), affine(4)
    value, gradient = jax.value_and_grad(
        lambda x: jnp.sum(Norm("instance").apply({"params": p}, x) ** 2)
    )(jnp.asarray(x))
    np.testing.assert_allclose(value, 18 * np.sum(p["shift"] ** 2), rtol=1e-3)
    assert np.all(np.isfinite(gradient))


def test_moments_of_bfloat16_are_summed_in_float32():
    """A plane so large that sums of its voxels in bfloat16 would stop growing."""
    torch = pytest.importorskip("torch")
    x = jnp.asarray(block_of(2, mean=1.0, shape=(1, 1, 96, 96)), jnp.bfloat16)
    p = affine(2)
    found = Norm("instance").apply({"params": p}, x)
    expected = torch_norm(torch, "instance", np.asarray(x, np.float32), p, planes=False)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 7, 8, 12, 16, 20, 24, 30, 64, 100])
def test_groups_divide_the_channels_and_are_as_many_as_their_width_allows(channels):
    fitting = [g for g in range(1, channels + 1) if channels % g == 0 and channels // g >= 8]
    assert group_count(channels) == max(fitting, default=1)


@pytest.mark.parametrize("norm", ["none", "instance", "group"])
def test_a_convolution_has_a_bias_or_a_norm(norm):
    params = jax.eval_shape(
        Conv(4, (1, 3, 3), norm=norm).init, jax.random.key(0), jnp.zeros((1, 1, 4, 4, 2))
    )["params"]
    assert set(params) == ({"kernel", "bias"} if norm == "none" else {"kernel", "norm"})
    if norm != "none":
        assert {name: leaf.shape for name, leaf in params["norm"].items()} == {
            "scale": (4,),
            "shift": (4,),
        }


def test_a_normalised_convolution_agrees_with_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, p = block_of(3), affine(8)
    kernel = np.random.default_rng(3).normal(size=(3, 3, 3, 3, 8)).astype(np.float32)
    found = Conv(8, (3, 3, 3), norm="group").apply({"params": {"kernel": kernel, "norm": p}}, x)
    there = functional.conv3d(
        torch.tensor(x).movedim(-1, 1), torch.tensor(kernel).permute(4, 3, 0, 1, 2), padding=1
    )
    there = functional.group_norm(there, 1, *(torch.tensor(p[n]) for n in ("scale", "shift")))
    expected = functional.relu(there).movedim(1, -1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def names_of(tree):
    return {str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


NETWORKS = [
    (UNet, {"width": 2, "scales": 2, "padding": "SAME"}),
    (Hybrid2D3D, {"width": 2}),
    (UNet3D, {"width": 2, "scales": 2, "convs": 1}),
]


@pytest.mark.parametrize(("network", "options"), NETWORKS)
def test_a_network_has_norms_only_where_they_are_asked_for(network, options):
    x = jnp.zeros((1, 2, 16, 16, 1))
    trees = [
        jax.eval_shape(network(classes=3, **options, **norm).init, jax.random.key(0), x)["params"]
        for norm in ({}, {"norm": "none"}, {"norm": "instance"})
    ]
    assert trees[0] == trees[1] and names_of(trees[0]) == {"kernel", "bias"}
    assert names_of(trees[2]) == {"kernel", "bias", "scale", "shift"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees[2]):
        keys = [part.key for part in path]
        plain = any("predictor" in key or key.startswith(("up", "pyramid_")) for key in keys)
        # Every convolution has a norm in place of its bias but those that predict or upsample.
        if keys[-1] == "bias":
            assert plain
        if keys[-1] in ("scale", "shift"):
            assert not plain and keys[-2] == "norm" and leaf.shape == (leaf.size,)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_the_planes_of_a_normalised_block_of_planes_do_not_mix(norm):
    block = Block(((8, (1, 3, 3)), (8, (1, 3, 3))), norm=norm, norm_planes=True)
    x = block_of(2, shape=(1, 3, 6, 6))
    variables = draw_parameters(jax.random.key(0), block, x.shape)
    apply = jax.jit(block.apply)
    other = x.copy()
    other[:, 1] = block_of(2, seed=5, shape=(1, 1, 6, 6))[:, 0]
    found, changed = apply(variables, x), apply(variables, other)
    np.testing.assert_array_equal(found[:, ::2], changed[:, ::2])
    assert np.abs(found - changed)[:, 1].max() > 1e-3
