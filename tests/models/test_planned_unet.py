"""PlannedUNet: folding by loops, the forward pass in PyTorch, what a plane depends on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import shapes

from densejax.models.layers import draw_parameters
from densejax.models.planned_unet import PlannedUNet, fold, leaky_relu, unfold, whole_stride

PLANES = {
    "classes": 3,
    "widths": (4, 6, 8),
    "kernels": ((1, 3, 3),) * 3,
    "strides": ((1, 2, 2),) * 3,
}
SOLID = {
    "classes": 2,
    "widths": (4, 6, 8),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
}
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 1, 3), (3, 2, 2)]


def parameters(model, window, seed=0):
    """Glorot kernels, and biases, scales and shifts that differ from channel to channel."""
    tree = draw_parameters(jax.random.key(seed), model, (1, *window, 1))
    random = np.random.default_rng(seed)

    def vary(leaf):
        noise = 0.3 * random.normal(size=leaf.shape)
        return np.asarray(leaf + noise * (leaf.ndim == 1), np.float32)

    return jax.tree.map(vary, tree)


def image(window, *, batch=1, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *window, 1)).astype(np.float32)


@pytest.mark.parametrize("stride", STRIDES)
def test_folding_by_loops(stride):
    sizes = [2 * s for s in stride]
    x = np.arange(2 * math.prod(sizes) * 3).reshape(2, *sizes, 3).astype(np.float32)
    found = fold(x, stride)
    assert found.shape == (2, 2, 2, 2, math.prod(stride) * 3)
    for b, z, y, w in np.ndindex(2, 2, 2, 2):
        step = [
            x[b, z * stride[0] + i, y * stride[1] + j, w * stride[2] + k]
            for i, j, k in np.ndindex(*stride)
        ]
        np.testing.assert_array_equal(found[b, z, y, w], np.concatenate(step))


@pytest.mark.parametrize("stride", STRIDES)
def test_unfolding_is_the_inverse_of_folding(stride):
    x = np.random.default_rng(0).normal(size=(2, *(3 * s for s in stride), 2)).astype(np.float32)
    np.testing.assert_array_equal(unfold(fold(x, stride), stride), x)
    y = fold(x, stride)
    np.testing.assert_array_equal(fold(unfold(y, stride), stride), y)


def test_folding_of_planes_is_pixel_unshuffling():
    torch = pytest.importorskip("torch")
    x = image((1, 6, 8), batch=2)
    there = torch.nn.functional.pixel_unshuffle(torch.tensor(x[:, 0]).movedim(-1, 1), 2)
    np.testing.assert_array_equal(fold(x, (1, 2, 2))[:, 0], there.movedim(1, -1).numpy())
    # PyTorch's channels are [c, step], ours [step, c].
    y = np.random.default_rng(1).normal(size=(2, 1, 3, 4, 4 * 5)).astype(np.float32)
    theirs = torch.tensor(y[:, 0]).unflatten(-1, (4, 5)).transpose(-1, -2).flatten(-2)
    there = torch.nn.functional.pixel_shuffle(theirs.movedim(-1, 1), 2)
    np.testing.assert_array_equal(unfold(y, (1, 2, 2))[:, 0], there.movedim(1, -1).numpy())


def test_leaky_relu_and_its_gradient_agree_with_torch():
    torch = pytest.importorskip("torch")
    x = np.float32([-3, -0.5, 0, 0.5, 3])
    there = torch.tensor(x, requires_grad=True)
    found = torch.nn.functional.leaky_relu(there, 0.01)
    found.sum().backward()
    np.testing.assert_allclose(leaky_relu(x), found.detach().numpy())
    ours = jax.grad(lambda x: leaky_relu(x).sum())(jnp.asarray(x))
    np.testing.assert_allclose(ours, there.grad.numpy())


def reference(torch, options, params, x, *, residual=False):
    """The network of planes or of volumes in PyTorch; x [b, 1, z, y, x].

    Returns:
      Logits of the finest scale before they are unfolded, its features, and those of each decoder.
    """
    functional = torch.nn.functional
    kernels, strides = options["kernels"], options["strides"]
    flat = all(k[0] == 1 for k in (*kernels, *strides))

    def conv(t, p):
        kernel = p["kernel"].permute(4, 3, 0, 1, 2)
        return functional.conv3d(
            t, kernel, p.get("bias"), padding=[k // 2 for k in kernel.shape[2:]]
        )

    def norm(t, p):
        if not flat:
            return functional.instance_norm(t, weight=p["scale"], bias=p["shift"])
        planes = [
            functional.instance_norm(t[:, :, z], weight=p["scale"], bias=p["shift"])
            for z in range(t.shape[2])
        ]
        return torch.stack(planes, 2)

    def layer(t, name):
        return norm(conv(t, params[name]), params[name]["norm"])

    def block(t, name):
        y = functional.leaky_relu(layer(t, f"{name}_conv0"), 0.01)
        y = layer(y, f"{name}_conv1")
        if residual:
            y = y + (conv(t, params[f"{name}_skip"]) if f"{name}_skip" in params else t)
        return functional.leaky_relu(y, 0.01)

    skips = [block(x, "encoder0")]
    for scale in range(1, len(kernels)):
        pooled = functional.max_pool3d(skips[-1], strides[scale])
        skips.append(block(pooled, f"encoder{scale}"))
    t, coarse = skips.pop(), []
    for scale in reversed(range(len(kernels) - 1)):
        p, stride = params[f"up{scale}"], strides[scale + 1]
        kernel = p["kernel"].permute(3, 4, 0, 1, 2)
        up = functional.conv_transpose3d(t, kernel, p["bias"], stride=stride)
        t = block(torch.cat([skips.pop(), up], 1), f"decoder{scale}")
        if scale:
            coarse.append(t)
    return conv(t, params["predictor"]), t, coarse[::-1]


def torch_tree(torch, params):
    return jax.tree.map(lambda p: torch.tensor(np.asarray(p)), params["params"])


@pytest.mark.parametrize(("block", "neighbours"), [("plain", 0), ("residual", 1)])
def test_the_network_of_planes_agrees_with_torch(block, neighbours):
    torch = pytest.importorskip("torch")
    model = PlannedUNet(**PLANES, block=block, neighbours=neighbours)
    window = (2 + 2 * neighbours, 16, 24)
    variables, x = parameters(model, window), image(window, batch=2)
    logits, out = jax.jit(model.apply)(variables, x)
    # Channels: of each voxel of a step, the planes from the one above to the one below.
    planes = torch.nn.functional.pixel_unshuffle(torch.tensor(x).movedim(-1, 2), 2)
    planes = [planes[:, i : i + 2] for i in range(2 * neighbours + 1)]
    there = torch.stack(planes, 3).flatten(2, 3).movedim(2, 1)
    params = torch_tree(torch, variables)
    found, features, _ = reference(torch, PLANES, params, there, residual=block == "residual")
    np.testing.assert_allclose(
        out["features"], features.movedim(1, -1).numpy(), rtol=1e-3, atol=1e-4
    )
    # Channels [step, class] -> [class, step], as PyTorch shuffles them.
    found = found.movedim(1, -1).unflatten(-1, (4, 3)).transpose(-1, -2).flatten(-2)
    found = torch.nn.functional.pixel_shuffle(found.movedim(-1, 2), 2).movedim(2, -1)
    assert logits.shape == (2, 2, *window[1:], 3) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, found.numpy(), rtol=1e-3, atol=1e-4)


def test_the_network_of_volumes_and_its_coarser_logits_agree_with_torch():
    torch = pytest.importorskip("torch")
    model, window = PlannedUNet(**SOLID, deep_supervision=True), (4, 8, 12)
    variables, x = parameters(model, window), image(window)
    logits, out = jax.jit(model.apply)(variables, x)
    params = torch_tree(torch, variables)
    there = torch.tensor(x).movedim(-1, 1)
    found, _, coarse = reference(torch, SOLID, params, there)
    np.testing.assert_allclose(logits, found.movedim(1, -1).numpy(), rtol=1e-3, atol=1e-4)
    assert len(out["deep"]) == len(coarse) == 1
    p = params["predictor1"]
    kernel = p["kernel"].permute(4, 3, 0, 1, 2)
    expected = torch.nn.functional.conv3d(coarse[0], kernel, p["bias"]).movedim(1, -1).numpy()
    np.testing.assert_allclose(out["deep"][0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "window"),
    [
        (PLANES, (3, 16, 24)),
        (dict(PLANES, neighbours=2), (7, 8, 16)),
        (SOLID, (4, 8, 12)),
        (dict(SOLID, strides=((1, 2, 2), (1, 2, 2), (2, 2, 2))), (2, 8, 16)),
        (
            {
                "classes": 5,
                "widths": (4, 4, 4, 4),
                "kernels": ((3, 3, 3),) * 4,
                "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
            },
            (8, 16, 8),
        ),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_shapes_are_those_of_the_scales(options, window, deep):
    model = PlannedUNet(**options, deep_supervision=deep)
    (logits, out), _ = shapes(model, window)
    strides, classes = options["strides"], options["classes"]
    inner = (window[0] - 2 * options.get("neighbours", 0), *window[1:])
    assert model.output_window(window) == inner
    assert logits.shape == (2, *inner, classes)

    def size(scale):
        whole = np.prod(strides[: scale + 1], axis=0)
        return tuple(n // step for n, step in zip(inner, whole, strict=True))

    assert out["features"].shape == (2, *size(0), options["widths"][0])
    assert ("deep" in out) == deep
    if deep:
        scales = range(1, len(strides) - 1)
        assert [level.shape for level in out["deep"]] == [(2, *size(s), classes) for s in scales]
        assert {level.dtype for level in out["deep"]} == {jnp.dtype("float32")}


def test_kernels_are_those_of_the_scales():
    _, variables = shapes(PlannedUNet(**SOLID), (4, 8, 12))
    tree = jax.tree.map(lambda leaf: leaf.shape, variables["params"])
    for part, inputs in (("encoder", (1, 4, 6)), ("decoder", (8, 12))):
        for scale, channels in enumerate(inputs):
            kernel, width = SOLID["kernels"][scale], SOLID["widths"][scale]
            assert tree[f"{part}{scale}_conv0"]["kernel"] == (*kernel, channels, width)
            assert tree[f"{part}{scale}_conv1"]["kernel"] == (*kernel, width, width)
    for scale in (0, 1):
        below, width = SOLID["widths"][scale + 1], SOLID["widths"][scale]
        assert tree[f"up{scale}"]["kernel"] == (*SOLID["strides"][scale + 1], below, width)
    assert not any(name.startswith("predictor1") for name in tree)


@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_plane_depends_on_its_neighbours_and_on_no_other(neighbours):
    options = dict(PLANES, neighbours=neighbours, deep_supervision=True)
    model, window = PlannedUNet(**options), (2 * neighbours + 4, 8, 8)
    variables, x = parameters(model, window), image(window)
    apply = jax.jit(lambda x: (model.apply(variables, x)[0], *model.apply(variables, x)[1]["deep"]))
    before = apply(x)
    for changed in range(window[0]):
        other = x.copy()
        other[:, changed] = image((1, 8, 8), seed=7)[:, 0]
        for one, two in zip(before, apply(other), strict=True):
            moved = np.abs(np.asarray(one) - np.asarray(two)).max((0, 2, 3, 4))
            assert len(moved) == 4
            for plane, size in enumerate(moved):
                # Plane z of the logits is plane z + neighbours of the window.
                near = abs(plane + neighbours - changed) <= neighbours
                assert size > 1e-3 if near else size == 0


def test_a_block_of_one_width_has_an_identity_around_it():
    options = dict(PLANES, widths=(4, 4, 4), block="residual")
    _, variables = shapes(PlannedUNet(**options), (1, 8, 8))
    skips = {name for name in variables["params"] if name.endswith("_skip")}
    # The first has four folded voxels of one channel; the decoders join two of four.
    assert skips == {"decoder0_skip", "decoder1_skip"}


@pytest.mark.parametrize("norm", ["none", "group"])
def test_other_norms_of_the_planned_network(norm):
    (logits, _), variables = shapes(PlannedUNet(**PLANES, norm=norm), (1, 8, 8))
    assert logits.shape == (2, 1, 8, 8, 3)
    assert ("norm" in variables["params"]["encoder0_conv0"]) == (norm == "group")


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_logits_float32():
    window = (1, 16, 16)
    half, full = (
        PlannedUNet(**PLANES, deep_supervision=True, dtype=dtype)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    variables, x = parameters(full, window), image(window)
    logits, out = jax.jit(half.apply)(variables, x)
    stored = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}
    assert logits.dtype == out["deep"][0].dtype == jnp.float32
    assert out["features"].dtype == jnp.bfloat16
    expected = np.asarray(jax.jit(full.apply)(variables, x)[0])
    assert np.abs(logits - expected).mean() < 0.02 * np.abs(expected).mean() + 0.01


@pytest.mark.parametrize(
    ("options", "window", "message"),
    [
        (PLANES, (1, 12, 16), r"\(1, 12, 16\).*multiples of \(1, 8, 8\)"),
        (PLANES, (1, 16, 4), r"\(1, 16, 4\)"),
        (PLANES, (0, 8, 8), r"\(0, 8, 8\)"),
        (PLANES, (8, 8), r"\(8, 8\)"),
        (SOLID, (3, 8, 8), r"\(3, 8, 8\).*multiples of \(2, 4, 4\)"),
        (dict(PLANES, neighbours=1), (2, 8, 8), r"\(2, 8, 8\).* and 2 more in z"),
        (dict(SOLID, neighbours=1), (6, 8, 8), "neighbours=1 with kernels or strides along z"),
        (dict(PLANES, widths=(4, 6)), (1, 8, 8), "2 widths, 3 kernels and 3 strides"),
        (dict(PLANES, kernels=((1, 3, 3),) * 2), (1, 8, 8), "3 widths, 2 kernels and 3 strides"),
        (dict(PLANES, strides=((1, 2, 2),) * 4), (1, 16, 16), "3 kernels and 4 strides"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, window, message):
    with pytest.raises(ValueError, match=message):
        PlannedUNet(**options).output_window(window)


def test_the_call_refuses_what_output_window_refuses():
    model = PlannedUNet(**PLANES)
    for shape in ((1, 1, 12, 16, 1), (1, 1, 8, 8, 2)):
        with pytest.raises(ValueError, match="PlannedUNet"):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def test_whole_stride_by_hand():
    assert whole_stride([(1, 2, 2), (1, 2, 3), (2, 2, 1)]) == (2, 8, 6)
