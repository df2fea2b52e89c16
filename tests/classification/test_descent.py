"""Training by any method: rates that fall as PyTorch's schedulers have them, weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densejax.classification.descent import DescentTask
from densejax.classification.task import image_data
from densejax.models.mlp import MLP
from densejax.optim.method import descent
from densejax.optim.torch_forms import quasi_newton

CLASSES = 3


def world(number=20, dimensions=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, number).astype(np.int32)
    features = rng.standard_normal((number, dimensions)).astype(np.float32)
    features += 2 * np.eye(CLASSES, dimensions)[labels].astype(np.float32)
    other, wrong = features[::-1][:7] + 0.5, labels[::-1][:7]
    return image_data(
        features,
        labels,
        [np.arange(number)],
        evaluation_images=np.ascontiguousarray(other),
        evaluation_labels=np.ascontiguousarray(wrong),
        classes=CLASSES,
    )


def task(**options):
    model = MLP(CLASSES, widths=(6,))
    common = {"classes": CLASSES, "largest": 20, "batch": 20, "epochs": 9, "schedule": "constant"}
    common |= {"init_variables": lambda key: model.init(key, jnp.zeros((1, 5)))}
    return DescentTask(network=model.apply, **(common | {"learning_rate": 0.1} | options))


def trained(one, data, steps):
    state, rows, step = one.init(jax.random.key(0), {}), [], jax.jit(one.step)
    for _ in range(steps):
        state, measures = step(state, data)
        rows.append({name: float(value) for name, value in measures.items()})
    return state, rows


def torch_copy(torch, variables):
    nn, p = torch.nn, variables["params"]
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    for place, name in ((0, "linear0"), (2, "head")):
        network[place].weight.data = torch.tensor(np.array(p[name]["kernel"]).T.copy())
        network[place].bias.data = torch.tensor(np.array(p[name]["bias"]))
    return network


def test_momentum_decay_and_milestones_are_torchs():
    torch = pytest.importorskip("torch")
    data = world()
    one = task(
        method=descent(optax.trace(0.9)), weight_decay=0.05, batch=8, milestones=(2, 4), epochs=6
    )
    per_epoch = 3
    network = torch_copy(torch, one.init(jax.random.key(0), {})["variables"])
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 4])
    state, rates = one.init(jax.random.key(0), {}), []
    step = jax.jit(one.step)
    for i in range(6 * per_epoch):
        # The pictures that the task draws: the same order in PyTorch.
        chosen = np.asarray(one.draw(state, data).labels)
        order = np.asarray(one.draw(state, data).order)[(i % per_epoch) * 8 :][
            : (chosen >= 0).sum()
        ]
        state, measures = step(state, data)
        optimiser.zero_grad()
        logits = network(torch.tensor(data["images"][order]))
        target = torch.tensor(data["labels"][order].astype(np.int64))
        torch.nn.functional.cross_entropy(logits, target).backward()
        rates.append((float(measures["rate"]), optimiser.param_groups[0]["lr"]))
        optimiser.step()
        if i % per_epoch == per_epoch - 1:
            schedule.step()
    np.testing.assert_allclose(*zip(*rates, strict=True), rtol=1e-5)
    assert rates[0][0] == pytest.approx(100 * rates[-1][0])
    found = state["variables"]["params"]["linear0"]["kernel"]
    np.testing.assert_allclose(found.T, network[0].weight.detach().numpy(), rtol=1e-3, atol=1e-5)


def test_the_rate_falls_on_a_plateau_as_torchs_does():
    torch = pytest.importorskip("torch")
    # So high a rate that the evaluation loss goes up and down.
    one = task(patience=1, learning_rate=3.0, lowest_rate=1e-3)
    data = world()
    state, step = one.init(jax.random.key(1), {}), jax.jit(one.step)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, patience=1, threshold=1e-4, threshold_mode="rel", min_lr=1e-3
    )
    found, expected = [], []
    for _ in range(25):
        state, measures = step(state, data)
        found.append(float(measures["rate"]))
        expected.append(optimiser.param_groups[0]["lr"])
        scheduler.step(float(one.evaluate(state, data)["evaluation_loss"]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == 3.0 and len(set(expected)) >= 3


def test_methods_that_need_more_than_a_gradient():
    state, rows = trained(task(method=quasi_newton(memory=5), learning_rate=0.9), world(), 3)
    assert rows[-1]["loss"] < 0.1 * rows[0]["loss"]
    assert int(state["moments"]["count"]) > 20


def test_settings_replace_the_rate():
    one = task()
    state = one.init(jax.random.key(0), {"learning_rate": jnp.float32(0.5)})
    assert float(jax.jit(one.step)(state, world())[1]["rate"]) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patience": -1}, "patience must not be"), ({"milestones": (5, 2)}, "milestones")],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)
