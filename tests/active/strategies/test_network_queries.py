"""ODIN and VAAL in rounds: the former as PyTorch moves pictures, the latter as called by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active.pool import Pool
from densejax.active.strategies.odin import odin_query
from densejax.active.strategies.vaal import vaal, vaal_query
from densejax.classification.pretrained import perceptron
from densejax.classification.task import ImageTask

KEY = jax.random.key(3)
MEAN, STD = (0.4, 0.6), (0.2, 0.3)


def world(side=4, n=30, channels=2, dtype=np.uint8):
    rng = np.random.default_rng(side)
    images, moments = rng.integers(0, 256, (n, side, side, channels)).astype(np.uint8), {}
    if dtype == np.uint8:
        moments = {"mean": MEAN, "std": STD}
    else:
        images = rng.normal(size=images.shape).astype(dtype)
    network = perceptron(3, images.shape[1:], widths=(6,), **moments)
    task = ImageTask(network.init, network.apply, 3, 1, batch=4, epochs=3, **moments)
    labelled = np.arange(n) % 3 == 0
    held_out = np.arange(n) % 3 == 1
    held_out[::2] = False
    return task, images, Pool(images=images, labelled=labelled, held_out=held_out)


def torch_odin(torch, variables, images, temperature, step, standard):
    """1 - max P at moved pictures [n, y, x, c] in the unit that is moved, in float64."""
    layers = [variables["params"][name] for name in ("linear0", "head")]
    double = lambda a: torch.tensor(np.array(a), dtype=torch.float64)  # noqa: E731
    weights = [{name: double(array) for name, array in layer.items()} for layer in layers]
    mean, std = map(double, standard)

    def network(x):
        y = ((x - mean) / std).reshape(len(x), -1)
        y = torch.relu(y @ weights[0]["kernel"] + weights[0]["bias"])
        return (y @ weights[1]["kernel"] + weights[1]["bias"]) / temperature

    x = torch.tensor(images, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(network(x), network(x).argmax(1), reduction="sum")
    loss.backward()
    moved = x.detach() - step * x.grad.sign()
    return (1 - torch.softmax(network(moved), dim=1).max(dim=1).values).numpy()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_odin_is_that_of_pytorch_and_takes_the_largest(dtype):
    torch = pytest.importorskip("torch")
    task, images, pool = world(dtype=dtype)
    select = odin_query(task, images, temperature=2.0, step=0.02)
    for seed in range(2):
        variables = jax.tree.map(np.asarray, task.init_variables(jax.random.key(seed)))
        found = select(KEY, pool, 5, variables=variables)
        pictures, standard = (images / 255, (MEAN, STD)) if dtype == np.uint8 else (images, (0, 1))
        expected = torch_odin(torch, variables, pictures, 2.0, 0.02, standard)
        free = np.flatnonzero(pool.available)
        order = free[np.argsort(-expected[free], kind="stable")][:5]
        assert set(found.indices.tolist()) == set(order.tolist())
        np.testing.assert_allclose(found.scores, expected[found.indices], rtol=1e-4)


def test_odin_refuses_before_it_is_asked():
    task, images, _ = world()
    with pytest.raises(ValueError, match="temperature 0"):
        odin_query(task, images, temperature=0, step=0.1)
    with pytest.raises(ValueError, match="step -1"):
        odin_query(task, images, temperature=1, step=-1)


SMALL = {"latent": 4, "batch": 8}


def test_vaal_learns_as_long_as_the_classifier():
    task, images, pool = world(side=4)
    select = vaal_query(task, images, options=SMALL | {"width": 4})
    # Ten labelled samples in batches of 4, three epochs; pictures of 4 pixels are halved twice.
    by_hand = vaal(KEY, pool, 6, steps=9, widths=(4, 8), mean=MEAN, std=STD, **SMALL)
    found = select(KEY, pool, 6)
    np.testing.assert_array_equal(found.indices, by_hand.indices)
    np.testing.assert_array_equal(found.scores, by_hand.scores)
    assert pool.available[found.indices].all()
    shorter = vaal_query(task, images, options=SMALL | {"width": 4, "steps": 2})(KEY, pool, 6)
    assert not np.array_equal(shorter.scores, found.scores)


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "message"),
    [
        ((5, 8), np.float32, {}, r"pictures uint8 .*; found float32 \(5, 8\)"),
        ((5, 30, 30, 3), np.uint8, {}, "30 x 30 pixels; expected 64 or more, or square"),
        ((5, 32, 16, 3), np.uint8, {}, "32 x 16 pixels"),
        ((5, 32, 32, 3), np.uint8, {"steps": 0}, "steps are 0"),
        ((5, 32, 32, 3), np.uint8, {"width": 0}, "width is 0"),
    ],
)
def test_vaal_refuses_before_any_training(shape, dtype, options, message):
    task, *_ = world()
    with pytest.raises(ValueError, match=message):
        vaal_query(task, jnp.zeros(shape, dtype), options=options)
