"""A PyTorch network's weights as a tree: the same surface as PyTorch's loop over points makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.landscape.directions import first_axis, random_plane
from densejax.landscape.surfaces import surface

torch = pytest.importorskip("torch")

POINTS = 9


def torch_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3, padding=1),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 8, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 3 * 3, 12),
        torch.nn.ReLU(),
        torch.nn.Linear(12, 4),
    )


def jax_forward(weights, x):
    """The same network of a state dict's arrays, x [b, c, y, x]."""

    def convolved(x, name, stride, pad):
        kernel, padding = weights[f"{name}.weight"], [(pad, pad)] * 2
        y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding)
        return y + weights[f"{name}.bias"][:, None, None]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    y = convolved(x, "0", 1, 1)
    mean, var, scale, bias = (
        weights[f"1.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    y = jax.nn.relu((y - mean) / jnp.sqrt(var + 1e-5) * scale + bias)
    y = jax.nn.relu(convolved(y, "3", 2, 0)).reshape(len(x), -1)
    return linear(jax.nn.relu(linear(y, "6")), "8")


def test_surface_of_a_state_dict_is_that_of_pytorchs_loop():
    model = torch_network()
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 2, 8, 8)).astype(np.float32)
    labels = generator.integers(0, 4, 40)
    with torch.no_grad():
        for _ in range(3):
            model(torch.tensor(x))
    model.eval()
    # The whole state dict is the tree: running moments and the counter of batches included.
    state = model.state_dict()
    state["8.weight"] *= 10
    weights = {name: value.numpy().copy() for name, value in state.items()}
    plane = random_plane(jax.random.key(0), weights, axes=first_axis(weights))

    def loss(weights):
        logits = jax_forward(weights, x)
        true = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return {"loss": -true.mean(), "accuracy": (logits.argmax(axis=1) == labels).mean()}

    found = surface(loss, plane, points=(POINTS, POINTS - 2), progress=False)
    expected, right = (np.zeros((POINTS, POINTS - 2)) for _ in range(2))
    directions = [
        {name: torch.tensor(np.asarray(d[name])) for name in weights}
        for d in (plane.first, plane.second)
    ]
    centre = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for i, a in enumerate(found.x):
            for j, b in enumerate(found.y):
                first, second = directions
                moved = {
                    name: w + float(a) * first[name] + float(b) * second[name]
                    if w.is_floating_point()
                    else w
                    for name, w in centre.items()
                }
                model.load_state_dict(moved)
                logits = model(torch.tensor(x))
                target = torch.tensor(labels)
                expected[i, j] = torch.nn.functional.cross_entropy(logits, target)
                right[i, j] = (logits.argmax(1) == target).float().mean()
    np.testing.assert_allclose(found.values["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(found.values["accuracy"], right, atol=1 / 40)
    assert np.ptp(expected) > 0.1


def test_filters_of_a_state_dict_are_its_rows():
    """The norm of each output unit's direction is that of its weights; the rest stays."""
    state = torch_network().state_dict()
    weights = {name: value.numpy() for name, value in state.items()}
    plane = random_plane(jax.random.key(0), weights, axes=first_axis(weights))
    for name in ("0.weight", "3.weight", "6.weight", "8.weight"):
        rows = [
            np.asarray(tree[name]).reshape(len(weights[name]), -1)
            for tree in (plane.first, weights)
        ]
        norms = [np.linalg.norm(part, axis=1) for part in rows]
        np.testing.assert_allclose(*norms, rtol=1e-5)
    for name in ("0.bias", "1.weight", "1.running_mean", "1.num_batches_tracked"):
        assert not np.any(plane.first[name])
