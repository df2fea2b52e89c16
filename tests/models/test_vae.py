"""VAAL's networks: the published layers in PyTorch give the same numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.models.vae import VAE, Discriminator

SMALL = {"window": 16, "latent": 3, "widths": (4, 5, 6)}


def draw(model, shape, seed=0):
    rng = np.random.default_rng(seed)
    tree = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))

    def leaf(path, p):
        value = rng.standard_normal(p.shape) * 0.3
        if path[-1].key in ("var", "scale"):
            value = np.abs(value) + 0.5
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def torch_vae(torch, channels, window, latent, widths):
    nn = torch.nn
    conv = []
    for a, b in zip((channels, *widths), widths, strict=False):
        conv += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    small, coarse = window // 2 ** len(widths), window // 2 ** (len(widths) - 1)
    back = [
        nn.Linear(latent, coarse**2 * widths[-1]),
        nn.Unflatten(1, (widths[-1], coarse, coarse)),
    ]
    for a, b in zip(widths[::-1], widths[-2::-1], strict=False):
        back += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    back += [nn.ConvTranspose2d(widths[0], channels, 1)]
    flat = small**2 * widths[-1]
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(*conv, nn.Flatten()),
            "mean": nn.Linear(flat, latent),
            "log_variance": nn.Linear(flat, latent),
            "decoder": nn.Sequential(*back),
        }
    )


def put(torch, layer, p, stats=None):
    def copy(to, value):
        with torch.no_grad():
            to.copy_(torch.tensor(np.ascontiguousarray(value)))

    if stats is not None:
        copy(layer.weight, p["scale"])
        copy(layer.running_mean, stats["mean"])
        copy(layer.running_var, stats["var"])
        copy(layer.bias, p["bias"])
    else:
        copy(layer.weight, p["kernel"])
        if layer.bias is not None:
            copy(layer.bias, p["bias"])


def test_matches_pytorch():
    torch = pytest.importorskip("torch")
    model = VAE(**SMALL)
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 3)).astype(np.float32)
    variables = draw(model, x.shape)
    params, stats = variables["params"], variables["batch_stats"]
    net = torch_vae(torch, 3, 16, 3, (4, 5, 6)).eval()
    assert sum(p.size for p in jax.tree.leaves(params)) == sum(p.numel() for p in net.parameters())
    for i in range(3):
        kernel = {"kernel": params[f"down_{i}"]["kernel"].transpose(3, 2, 0, 1)}
        put(torch, net["encoder"][3 * i], kernel)
        norm = f"down_norm_{i}"
        put(torch, net["encoder"][3 * i + 1], params[norm], stats[norm])
    for name in ("mean", "log_variance"):
        kernel = params[name]["kernel"].reshape(2, 2, 6, 3).transpose(3, 2, 0, 1).reshape(3, 24)
        put(torch, net[name], params[name] | {"kernel": kernel})
    order = {"kernel": (3, 4, 4, 6), "bias": (1, 4, 4, 6)}
    expand = {
        k: np.asarray(params["expand"][k]).reshape(s).transpose(0, 3, 1, 2).reshape(s[0], -1)
        for k, s in order.items()
    }
    put(torch, net["decoder"][0], {"kernel": expand["kernel"].T, "bias": expand["bias"][0]})
    for i in range(2):
        kernel = params[f"up_{i}"]["kernel"][::-1, ::-1].transpose(2, 3, 0, 1)
        put(torch, net["decoder"][2 + 3 * i], {"kernel": kernel})
        norm = f"up_norm_{i}"
        put(torch, net["decoder"][3 + 3 * i], params[norm], stats[norm])
    paint = {"kernel": params["paint"]["kernel"][..., None, None], "bias": params["paint"]["bias"]}
    put(torch, net["decoder"][-1], paint)
    flat = net["encoder"](torch.tensor(x.transpose(0, 3, 1, 2)))
    mean, log_variance = net["mean"](flat), net["log_variance"](flat)
    expected = net["decoder"](mean).detach().numpy().transpose(0, 2, 3, 1)
    found, out = model.apply(variables, x)
    options = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(out["mean"], mean.detach(), **options)
    np.testing.assert_allclose(out["log_variance"], log_variance.detach(), **options)
    np.testing.assert_allclose(found, expected, **options)


@pytest.mark.parametrize(("window", "latent"), [(32, 32), (64, 64)])
def test_published_sizes(window, latent):
    torch = pytest.importorskip("torch")
    model = VAE(window=window, latent=latent)
    x = jax.ShapeDtypeStruct((2, window, window, 3), jnp.float32)
    (again, out), tree = jax.eval_shape(lambda a: model.init_with_output(jax.random.key(0), a), x)
    assert again.shape == x.shape and out["mean"].shape == (2, latent)
    with torch.device("meta"):
        net = torch_vae(torch, 3, window, latent, (128, 256, 512, 1024))
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(tree["params"]))
    assert count == sum(p.numel() for p in net.parameters())


def test_training_draws_codes_from_the_stated_normal():
    model = VAE(**SMALL)
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 3)).astype(np.float32)
    variables = draw(model, x.shape)

    def one(key):
        return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"latent": key})[
            0
        ][1]

    out = jax.lax.map(one, jax.random.split(jax.random.key(0), 500))
    deviation = jnp.exp(0.5 * out["log_variance"][0])
    error = (out["code"] - out["mean"]) / deviation
    assert abs(float(error.mean())) < 0.1 and abs(float(error.std()) - 1) < 0.1
    assert not np.array_equal(out["code"][0], out["code"][1])


def test_discriminator_matches_pytorch():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    model = Discriminator()
    codes = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    variables = model.init(jax.random.key(0), codes)
    layers = [nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)]
    net = nn.Sequential(*layers, nn.Sigmoid())
    for i, name in enumerate(("linear0", "linear1", "head")):
        p = variables["params"][name]
        put(torch, net[2 * i], {"kernel": np.asarray(p["kernel"]).T, "bias": p["bias"]})
    count = sum(p.size for p in jax.tree.leaves(variables))
    assert count == sum(p.numel() for p in net.parameters())
    logit, out = model.apply(variables, codes)
    expected = net(torch.tensor(codes)).detach()[:, 0]
    np.testing.assert_allclose(out["probability"], expected, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(logit), expected, rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="window is 33; expected a multiple of 16"):
        VAE(window=33).init(jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    with pytest.raises(ValueError, match=r"expected an input \[b, \*\(16, 16, 3\)\]"):
        VAE(**SMALL).init(jax.random.key(0), jnp.zeros((1, 16, 15, 3)))
    with pytest.raises(ValueError, match=r"expected codes \[b, d\]"):
        Discriminator().init(jax.random.key(0), jnp.zeros((3,)))
