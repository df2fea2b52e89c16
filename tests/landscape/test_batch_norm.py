"""Moments of batch norm computed again at each point, against PyTorch's ``update_bn``."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.landscape.directions import Line, random_plane
from densejax.landscape.objective import recalibrated
from densejax.landscape.surfaces import evaluate, surface
from densejax.models.resnet import ResNet

BATCHES, SIZE = 3, 8


def pictures(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCHES * SIZE, 6, 6, 2)).astype(np.float32)
    return x, rng.integers(0, 3, len(x))


@cache
def network(**options):
    net = ResNet(3, blocks=(1, 1), widths=(4, 6), stem="cifar", shortcut="pad", **options)
    return net, jax.jit(net.init)(jax.random.key(0), pictures()[0][:2])


def cross_entropy(net, x, labels):
    def loss(variables):
        logits, _ = net.apply(variables, x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

    return loss


def split(x):
    return x.reshape(BATCHES, SIZE, *x.shape[1:])


def plain_apply(momentum):
    """Two batch-norm layers with a linear one between, in NumPy-like steps; any momentum."""

    def normalised(y, stats, name, changed, train):
        mean, var = stats[name]["mean"], stats[name]["var"]
        if train:
            own = y.mean(0), y.var(0)
            unbiased = own[1] * len(y) / (len(y) - 1)
            keep = 1 - momentum
            changed[name] = {
                "mean": keep * mean + momentum * own[0],
                "var": keep * var + momentum * unbiased,
            }
            mean, var = own
        return (y - mean) / jnp.sqrt(var + 1e-5)

    def apply(variables, x, *, train=False, mutable=()):
        del mutable
        params, stats = variables["params"], variables["batch_stats"]
        changed = {}
        y = normalised(x @ params["a"], stats, "first", changed, train)
        y = normalised(jax.nn.relu(y) @ params["b"], stats, "second", changed, train)
        return (y, {"batch_stats": changed}) if train else y

    return apply


@pytest.mark.parametrize("momentum", [1.0, 0.1, 0.01])
def test_moments_are_those_of_update_bn(momentum):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    # Moments far from 0 and 1, as away from a minimum.
    x = (30 * rng.normal(size=(BATCHES * SIZE, 5)) + 20).astype(np.float32)
    params = {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=(4, 3))}
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 4, bias=False),
        torch.nn.BatchNorm1d(4, affine=False),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 3, bias=False),
        torch.nn.BatchNorm1d(3, affine=False),
    )
    with torch.no_grad():
        for layer, name in ((0, "a"), (3, "b")):
            model[layer].weight.copy_(torch.tensor(np.asarray(params[name]).T))
    torch.optim.swa_utils.update_bn(torch.tensor(split(x)), model)
    stats = {
        "first": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
        "second": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
    }
    apply = plain_apply(momentum)
    found = {}

    def loss(variables):
        for name, moments in variables["batch_stats"].items():
            found.update({f"{name} {kind}": value for kind, value in moments.items()})
        return apply(variables, x).mean(), found

    recalibrated(apply, split(x), lambda v: loss(v)[0], stats)(params)
    for layer, name in ((1, "first"), (4, "second")):
        np.testing.assert_allclose(found[f"{name} mean"], model[layer].running_mean, rtol=2e-5)
        np.testing.assert_allclose(found[f"{name} var"], model[layer].running_var, rtol=2e-5)


def test_loss_of_a_network_is_that_of_its_averaged_moments():
    """The network's own updates from any start, undone by hand, batch after batch."""
    net, variables = network()
    x, labels = pictures()
    params = jax.tree.map(lambda w: 1.5 * w, variables["params"])
    loss = jax.jit(cross_entropy(net, x, labels))
    total = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    update = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))
    for batch in split(x):
        old = variables["batch_stats"]
        _, new = update({"params": params, "batch_stats": old}, batch)
        own = jax.tree.map(lambda a, b: (b - 0.9 * a) / 0.1, old, new["batch_stats"])
        total = jax.tree.map(jnp.add, total, own)
    moments = jax.tree.map(lambda leaf: leaf / BATCHES, total)
    expected = loss({"params": params, "batch_stats": moments})
    loss_fn = recalibrated(net.apply, split(x), loss, variables["batch_stats"])
    assert float(jax.jit(loss_fn)(params)) == pytest.approx(float(expected), rel=1e-4)
    frozen = loss({"params": params, "batch_stats": variables["batch_stats"]})
    assert abs(float(frozen) - float(expected)) > 1e-2


def test_scale_of_the_weights_no_longer_matters():
    """Batch norm undoes the scale of what is before it, but only with its own moments."""
    net, variables = network()
    x, labels = pictures()
    params = variables["params"]
    line = Line(
        params,
        jax.tree.map(jnp.zeros_like, params)
        | {"conv1": params["conv1"], "layer1_0": {**_zeros(params["layer1_0"])}},
    )
    loss = cross_entropy(net, x, labels)
    moments = variables["batch_stats"]
    own = recalibrated(net.apply, split(x), loss, moments)
    t = np.array([0.0, 1.0, 4.0])
    found = evaluate(own, line, t)["loss"]
    np.testing.assert_allclose(found, found[0], rtol=1e-3)
    frozen = evaluate(lambda w: loss({"params": w, "batch_stats": moments}), line, t)["loss"]
    assert np.ptp(frozen) > 0.05


def test_surface_with_moments_of_each_point():
    net, variables = network()
    x, labels = pictures()
    own = recalibrated(net.apply, split(x), cross_entropy(net, x, labels), variables["batch_stats"])
    plane = random_plane(jax.random.key(1), variables["params"])
    at = jax.jit(lambda a, b: own(plane.at(a, b)))
    for chunk in (1, 4):
        found = surface(own, plane, points=3, chunk=chunk, progress=False).values["loss"]
        expected = [[float(at(a, b)) for b in (-1, 0, 1)] for a in (-1, 0, 1)]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_second_pass_costs_nothing():
    """Both passes over a batch share their convolutions: the program has those of one."""
    net, variables = network()
    x, labels = pictures()
    params = variables["params"]

    def once(params):
        def add(total, batch):
            _, new = net.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                batch,
                train=True,
                mutable=["batch_stats"],
            )
            return jax.tree.map(jnp.add, total, new["batch_stats"]), None

        total, _ = jax.lax.scan(add, variables["batch_stats"], split(x))
        return cross_entropy(net, x, labels)({"params": params, "batch_stats": total})

    own = recalibrated(net.apply, split(x), cross_entropy(net, x, labels), variables["batch_stats"])
    costs = [jax.jit(f).lower(params).compile().cost_analysis()["flops"] for f in (own, once)]
    assert costs[0] < 1.1 * costs[1]


def test_networks_without_new_moments():
    x, labels = pictures()
    net, variables = network(frozen_norm=True)
    loss = cross_entropy(net, x, labels)
    own = recalibrated(net.apply, split(x), loss, variables["batch_stats"])
    with pytest.raises(ValueError, match=r"leaves the moments .*\['mean'\] as they are"):
        own(variables["params"])
    net, variables = network()
    own = recalibrated(net.apply, split(x), loss, {"norm1": variables["batch_stats"]["norm1"]})
    with pytest.raises(Exception, match=r"batch_stats|norm"):
        own(variables["params"])
    with pytest.raises(ValueError, match=r"batches of lengths \[\(0,\)\]"):
        recalibrated(net.apply, x[:0], loss, variables["batch_stats"])


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)
