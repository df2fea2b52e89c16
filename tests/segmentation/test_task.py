"""The segmentation task against its equations in NumPy, PyTorch and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from densejax.data.datasets import LabelledVolume
from densejax.inference.sliding_window import predict_volume
from densejax.inference.tiles import Windowing
from densejax.losses import weighted_cross_entropy
from densejax.optim.tensorflow_forms import PUBLISHED_BETA1, PUBLISHED_BETA2
from densejax.segmentation.prepare import evaluation_windows
from densejax.segmentation.task import Descent, WindowTask

CLASSES = 3
WINDOW = (2, 3, 4)
L2 = {"main": 0.1, "side": 0.02}


def init_params(key):
    one, two = jax.random.split(key)
    return {
        "main": {"w": jax.random.normal(one, (CLASSES,)), "b": jnp.zeros(CLASSES)},
        "side": {"w": jax.random.normal(two, (CLASSES,))},
    }


def network(params, image):
    """Logits of each voxel from its own brightness; the side output stands for a 2-D module."""
    logits = image * params["main"]["w"] + params["main"]["b"]
    return logits, {"logits_2d": jnp.square(image) * params["side"]["w"]}


def group_of(path):
    return None if path[-1] == "b" else path[0]


def draw(key, step, data):
    """Windows by turns: step n reads window n, so that the reference knows which it was."""
    del key
    index = step % data["images"].shape[0]
    return tuple(jnp.asarray(data[name])[index] for name in ("images", "labels", "weights"))


def windows(number=6, seed=0):
    random = np.random.default_rng(seed)
    return {
        "images": random.normal(size=(number, *WINDOW)).astype(np.float32),
        "labels": random.integers(-1, CLASSES, (number, *WINDOW)).astype(np.int32),
        "weights": random.uniform(0.1, 2, (number, *WINDOW)).astype(np.float32),
    }


def task_of(**options):
    given = {"l2": L2, "group_of": group_of, "batch": 2, "decay_steps": 2.0}
    return WindowTask(init_params, network, draw, CLASSES, **(given | options))


def cross_entropy(logits, labels, weights, reduction):
    """Loss and its gradient with respect to the logits, float64."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    counts = labels >= 0
    truth = np.eye(CLASSES)[np.where(counts, labels, 0)]
    scale = np.where(counts, weights, 0) / (counts.sum() if reduction == "mean" else 1)
    loss = -(scale * np.log((shares * truth).sum(-1))).sum()
    return loss, scale[..., None] * (shares - truth)


def reference(params, data, steps, settings, reduction, batch=2):
    """Equation 4.3, TensorFlow's Adam and the staircase, written out in float64."""
    p = {
        "w": np.array(params["main"]["w"], float),
        "b": np.array(params["main"]["b"], float),
        "s": np.array(params["side"]["w"], float),
    }
    m = {name: np.zeros_like(value) for name, value in p.items()}
    v = {name: np.zeros_like(value) for name, value in p.items()}
    losses = []
    for step in range(steps):
        chosen = np.arange(step * batch, (step + 1) * batch) % len(data["images"])
        x = data["images"][chosen].astype(float)[..., None]
        rest = data["labels"][chosen], data["weights"][chosen], reduction
        loss, main = cross_entropy(x * p["w"] + p["b"], *rest)
        _, side = cross_entropy(x**2 * p["s"], *rest)
        losses.append(loss)
        scale = settings["l2_scale"]
        g = {
            "w": (x * main).reshape(-1, CLASSES).sum(0) + 2 * scale * L2["main"] * p["w"],
            "b": main.reshape(-1, CLASSES).sum(0),
            "s": settings["two_d_loss"] * (x**2 * side).reshape(-1, CLASSES).sum(0)
            + 2 * scale * L2["side"] * p["s"],
        }
        rate = settings["learning_rate"] * settings["decay_rate"] ** (step // 2)
        b1, b2, t = PUBLISHED_BETA1, PUBLISHED_BETA2, step + 1
        for name in p:
            m[name] = b1 * m[name] + (1 - b1) * g[name]
            v[name] = b2 * v[name] + (1 - b2) * g[name] ** 2
            size = rate * np.sqrt(1 - b2**t) / (1 - b1**t)
            p[name] = p[name] - size * m[name] / (np.sqrt(v[name]) + 1e-7)
    return {"main": {"w": p["w"], "b": p["b"]}, "side": {"w": p["s"]}}, losses


DEFAULTS = {"learning_rate": 1e-3, "decay_rate": 0.75, "two_d_loss": 0.33, "l2_scale": 1.0}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "settings", [{}, {"learning_rate": 0.1, "decay_rate": 0.5, "two_d_loss": 2.0, "l2_scale": 3.0}]
)
def test_steps_are_the_equations(reduction, settings):
    task, data = task_of(reduction=reduction), windows()
    state = task.init(jax.random.key(1), {n: np.float32(v) for n, v in settings.items()})
    start, step = state["params"], jax.jit(task.step)
    losses = []
    for _ in range(5):
        state, measures = step(state, data)
        losses.append(float(measures["loss"]))
    expected, expected_losses = reference(start, data, 5, DEFAULTS | settings, reduction)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        state["params"],
        expected,
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    assert int(state["step"]) == 5


def test_the_fields_are_the_settings_defaults():
    data, key = windows(), jax.random.key(1)
    values = {"learning_rate": 0.02, "decay_rate": 0.9, "two_d_loss": 0.1}
    fields = task_of(**values)
    one, _ = fields.step(fields.init(key, {}), data)
    task = task_of()
    other, _ = task.step(task.init(key, {n: np.float32(v) for n, v in values.items()}), data)
    jax.tree.map(np.testing.assert_array_equal, one["params"], other["params"])
    assert one["settings"].keys() == DEFAULTS.keys()


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(ValueError, match=r"learning_rte.*learning_rate"):
        task_of().init(jax.random.key(0), {"learning_rte": 1.0})


def test_what_is_not_labelled_teaches_nothing():
    task, data = task_of(two_d_loss=0.5), windows()
    other = dict(data, images=data["images"].copy(), weights=data["weights"].copy())
    other["images"][data["labels"] < 0] = 50.0
    other["weights"][data["labels"] < 0] = 9.0
    state = task.init(jax.random.key(0), {})
    (one, _), (two, _) = task.step(state, data), task.step(state, other)
    jax.tree.map(np.testing.assert_array_equal, one["params"], two["params"])


def test_a_network_without_a_2d_module_has_no_second_loss():
    def plain(params, image):
        logits = network(params, image)[0]
        return logits, {"logits_2d": logits}

    data, key = windows(), jax.random.key(0)
    both = [
        WindowTask(init_params, net, draw, CLASSES, batch=2)
        for net in (plain, lambda params, image: (network(params, image)[0], {}))
    ]
    one, two = (task.step(task.init(key, {}), data)[0]["params"] for task in both)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def box_network(params, image):
    """Smaller output than input: the mean of 3x3x3 voxels, then logits."""
    mean = jax.lax.conv_general_dilated(
        image,
        jnp.full((3, 3, 3, 1, 1), 1 / 27),
        (1, 1, 1),
        "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    return network(params, mean)[0], {}


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 9), (2, 3, 4)])
def test_evaluation_counts_each_voxel_once(shape):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, shape).astype(np.uint8)
    labels = random.integers(-1, CLASSES, shape).astype(np.int32)
    names = tuple("abc")
    volume = LabelledVolume("made", images, labels, None, (1.0, 1.0, 1.0), names)
    input_window = tuple(size + 2 for size in WINDOW) if min(shape) > 2 else WINDOW
    net = box_network if min(shape) > 2 else network
    task = WindowTask(init_params, net, draw, CLASSES)
    state = task.init(jax.random.key(2), {})
    inputs, targets = evaluation_windows(volume, window=input_window, output=WINDOW)
    found = task.evaluate(state, {"evaluation_images": inputs, "evaluation_labels": targets})

    def probabilities(tile):
        logits = net(state["params"], jnp.asarray(tile)[None, ..., None])[0]
        return np.asarray(jax.nn.softmax(logits))

    stitched = predict_volume(probabilities, images, Windowing(input_window, WINDOW)).labels
    counted = labels >= 0
    expected = confusion_matrix(labels[counted], stitched[counted], labels=range(CLASSES))
    np.testing.assert_array_equal(found["confusion"], expected)
    hits = np.diag(expected)
    unions = expected.sum(0) + expected.sum(1) - hits
    np.testing.assert_allclose(found["miou"], np.mean(hits[unions > 0] / unions[unions > 0]), 1e-5)


def test_the_evaluation_loss_is_a_mean_over_labelled_voxels():
    task, data = task_of(), windows(3)
    state = task.init(jax.random.key(2), {})
    given = {"evaluation_images": data["images"], "evaluation_labels": data["labels"]}
    found = task.evaluate(state, given)["evaluation_loss"]
    logits = network(state["params"], data["images"][..., None])[0]
    expected = weighted_cross_entropy(logits, data["labels"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_two_classes_are_learned():
    random = np.random.default_rng(0)
    images = random.normal(size=(8, *WINDOW)).astype(np.float32)
    labels = (images > 0.3).astype(np.int32)
    labels[random.random(labels.shape) < 0.2] = -1
    data = {"images": images, "labels": labels, "weights": np.ones_like(images)}
    data |= {"evaluation_images": images, "evaluation_labels": labels}

    def two(key):
        return {"w": 0.1 * jax.random.normal(key, (2,)), "b": jnp.zeros(2)}

    def net(params, image):
        return image * params["w"] + params["b"], {}

    task = WindowTask(two, net, draw, 2, learning_rate=0.05, stop_below=0.3, stop_after=5)
    state = task.init(jax.random.key(0), {})
    step = jax.jit(lambda s: jax.lax.fori_loop(0, 150, lambda _, t: task.step(t, data)[0], s))
    before, after = (task.evaluate(s, data) for s in (state, step(state)))
    assert before["miou"] < 0.8 < 0.95 < after["miou"]
    assert after["evaluation_loss"] < before["evaluation_loss"]
    assert int(after["confusion"].sum()) == int((labels >= 0).sum())


def test_the_early_stop_waits_and_then_asks():
    task = task_of(stop_below=0.3, stop_after=10)
    assert not task.stop(9, {"miou": 0.1})
    assert task.stop(10, {"miou": 0.1})
    assert not task.stop(10, {"miou": 0.3})
    assert not task_of().stop(10, {"miou": 0.0})


def test_a_step_maps_over_instances(assert_modes_agree):
    task, data = task_of(), windows()
    states = [task.init(jax.random.key(seed), {}) for seed in (0, 1)]
    assert_modes_agree(task.step, states[0], data, other=(states[1], data))


def pointwise_params(key):
    return {"kernel": jax.random.normal(key, (1, CLASSES)), "bias": jnp.zeros(CLASSES)}


def pointwise(params, image):
    return image @ params["kernel"] + params["bias"], {}


def descending(descent, *, network=pointwise, batch=2, **options):
    return WindowTask(
        pointwise_params, network, draw, CLASSES, batch=batch, descent=descent, **options
    )


def torch_loss(torch, logits, labels, weights, dice_weight):
    """Weighted cross-entropy and soft Dice over the labelled voxels of a batch."""
    kept = labels >= 0
    rows, truth = logits[kept], labels[kept].long()
    entropy = torch.nn.functional.cross_entropy(rows, truth, reduction="none")
    shares, hot = torch.softmax(rows, -1), torch.nn.functional.one_hot(truth, CLASSES)
    dice = (2 * (shares * hot).sum(0) + 1e-5) / (shares.sum(0) + hot.sum(0) + 1e-5)
    return (weights[kept] * entropy).sum() / kept.sum() + dice_weight * (1 - dice.mean())


def torch_batch(torch, data, step, batch):
    chosen = np.arange(step * batch, (step + 1) * batch) % len(data["images"])
    return [torch.tensor(data[name][chosen]) for name in ("images", "labels", "weights")]


def torch_descent(torch, start, data, number, descent, rate, *, batch=2):
    """A few steps in PyTorch: parameters, their average and the losses."""
    params = {name: torch.nn.Parameter(torch.tensor(np.asarray(p))) for name, p in start.items()}
    average = {name: np.asarray(p, float) for name, p in start.items()}
    groups = [
        {"params": [params["kernel"]], "weight_decay": descent.weight_decay},
        {"params": [params["bias"]], "weight_decay": 0.0},
    ]
    if descent.optimiser == "adamw":
        optimiser = torch.optim.AdamW(groups, lr=rate)
    else:
        optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.99, nesterov=True)
    losses = []
    for step in range(number):
        images, labels, weights = torch_batch(torch, data, step, batch)
        logits = images[..., None] @ params["kernel"] + params["bias"]
        loss = torch_loss(torch, logits, labels, weights, descent.dice_weight)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        if descent.clip:
            torch.nn.utils.clip_grad_norm_(params.values(), descent.clip)
        done = step / descent.steps
        factor = (1 - done) ** 0.9 if descent.schedule == "polynomial" else 1
        factor *= min(1, (step + 1) / descent.warmup) if descent.warmup else 1
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        optimiser.step()
        d = min(descent.average, (1 + step) / (10 + step))
        for name, p in params.items():
            average[name] = d * average[name] + (1 - d) * p.detach().numpy()
    return {name: p.detach().numpy() for name, p in params.items()}, average, losses


def assert_trees_close(found, expected, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), found, expected)


@pytest.mark.parametrize(
    "descent",
    [
        Descent(steps=8, weight_decay=0.1, average=0.9),
        Descent(
            steps=20,
            optimiser="sgd",
            schedule="constant",
            warmup=3,
            weight_decay=0.1,
            dice_weight=0.5,
            clip=0.05,
            average=0.2,
        ),
        Descent(steps=8, dice_weight=0.0, average=0.5),
    ],
)
def test_a_descent_is_that_of_torch(descent):
    torch = pytest.importorskip("torch")
    task, data = descending(descent, learning_rate=0.05), windows()
    state, losses = task.init(jax.random.key(3), {}), []
    start, step = state["params"], jax.jit(task.step)
    for _ in range(6):
        state, measures = step(state, data)
        losses.append(float(measures["loss"]))
    expected = torch_descent(torch, start, data, 6, descent, 0.05)
    assert_trees_close(state["params"], expected[0], rtol=1e-4, atol=1e-5)
    assert_trees_close(state["average"], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, expected[2], rtol=1e-4)
    assert max(np.abs(state["average"]["kernel"] - state["params"]["kernel"])[0]) > 1e-3


def test_the_average_is_what_is_evaluated_shown_and_kept():
    task, data = descending(Descent(steps=8, average=0.9), learning_rate=0.5), windows()
    state = task.init(jax.random.key(3), {})
    assert_trees_close(task.parameters(state), state["params"])
    step = jax.jit(task.step)
    for _ in range(3):
        state, _ = step(state, data)
    assert task.parameters(state) is state["average"]
    given = {"evaluation_images": data["images"], "evaluation_labels": data["labels"]}
    logits = {
        name: pointwise(state[name], data["images"][..., None])[0] for name in ("average", "params")
    }
    found = task.evaluate(state, given)["evaluation_loss"]
    np.testing.assert_allclose(
        found, weighted_cross_entropy(logits["average"], data["labels"]), rtol=1e-5
    )
    assert abs(found - weighted_cross_entropy(logits["params"], data["labels"])) > 1e-3
    places = np.arange(12, dtype=np.int32).reshape(3, 4)
    film = {"images": data["images"][:1], "plane": 1, "places": places}
    shares = jax.nn.softmax(logits["average"][0, 1], axis=-1)
    np.testing.assert_array_equal(
        task.section(state, film)["probabilities"], np.rint(255 * shares).astype(np.uint8)
    )


def test_without_an_average_the_newest_parameters_are_kept():
    task = descending(Descent(steps=8))
    state = task.init(jax.random.key(3), {})
    assert "average" not in state and task.parameters(state) is state["params"]


def test_members_may_differ_in_what_a_descent_names():
    data, key = windows(), jax.random.key(1)
    values = {"steps": 3, "weight_decay": 0.3, "dice_weight": 0.25}
    task, fields = descending(Descent(steps=50, warmup=2)), descending(Descent(warmup=2, **values))
    state = task.init(key, {name: np.float32(value) for name, value in values.items()})
    other, plain = fields.init(key, {}), task.init(key, {})
    step, others = jax.jit(task.step), jax.jit(fields.step)
    for _ in range(3):
        state, plain = step(state, data)[0], step(plain, data)[0]
        other = others(other, data)[0]
    assert_trees_close(state["params"], other["params"], rtol=1e-5, atol=1e-6)
    assert np.abs(plain["params"]["kernel"] - state["params"]["kernel"]).max() > 1e-4
    # The rate is 0 after the last step of a member's own schedule.
    last, _ = step(state, data)
    jax.tree.map(np.testing.assert_array_equal, last["params"], state["params"])
    with pytest.raises(ValueError, match=r"weight_decay.*learning_rate"):
        task_of().init(key, {"weight_decay": 0.1})


def test_a_descent_is_the_same_side_by_side():
    task, data = descending(Descent(steps=9, clip=0.1, average=0.9)), windows()
    states = [task.init(jax.random.key(seed), {"steps": np.float32(3 + seed)}) for seed in (0, 1)]
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), *states)
    together = jax.jit(jax.vmap(task.step, (0, None)))(stacked, data)
    step = jax.jit(task.step)
    for place, state in enumerate(states):
        own = jax.tree.map(lambda leaf, place=place: leaf[place], together)
        assert_trees_close(own, step(state, data), rtol=1e-5, atol=1e-6)


DEEP_WINDOW, COARSE = (2, 4, 8), ((1, 2, 2), (2, 4, 4))


def deep_network(params, image):
    """Logits of every voxel, and of means over coarser and coarser voxels."""
    deep = []
    for stride in COARSE:
        b, z, y, x, _ = image.shape
        blocks = image.reshape(
            b, z // stride[0], stride[0], y // stride[1], stride[1], x // stride[2], stride[2]
        )
        deep.append(pointwise(params, blocks.mean((2, 4, 6))[..., None])[0])
    return pointwise(params, image)[0], {"deep": tuple(deep)}


def test_coarser_logits_weigh_half_as_much_from_scale_to_scale():
    torch = pytest.importorskip("torch")
    random, shape = np.random.default_rng(0), (4, *DEEP_WINDOW)
    data = {
        "images": random.normal(size=shape).astype(np.float32),
        "labels": random.integers(-1, CLASSES, shape).astype(np.int32),
        "weights": random.uniform(0.1, 2, shape).astype(np.float32),
    }
    descent = Descent(steps=10, optimiser="sgd", schedule="constant", dice_weight=0.7)
    task = descending(descent, network=deep_network, learning_rate=0.1)
    before = task.init(jax.random.key(0), {})
    after, measures = jax.jit(task.step)(before, data)

    images, labels, weights = torch_batch(torch, data, 0, 2)
    params = {
        n: torch.tensor(np.asarray(p), requires_grad=True) for n, p in before["params"].items()
    }
    losses = []
    for stride in ((1, 1, 1), *COARSE):
        pooled = torch.nn.functional.avg_pool3d(images[:, None], stride)[:, 0]
        logits = pooled[..., None] @ params["kernel"] + params["bias"]
        coarse = torch.empty(pooled.shape, dtype=labels.dtype), torch.empty(pooled.shape)
        for b, z, y, x in np.ndindex(*pooled.shape):
            middle = [n * s + s // 2 for n, s in zip((z, y, x), stride, strict=True)]
            for values, whole in zip(coarse, (labels, weights), strict=True):
                values[b, z, y, x] = whole[b][tuple(middle)]
        losses.append(torch_loss(torch, logits, *coarse, 0.7))
    loss = (losses[0] + losses[1] / 2 + losses[2] / 4) / 1.75
    loss.backward()
    np.testing.assert_allclose(measures["loss"], loss.item(), rtol=1e-5)
    # Nesterov's first step is 1.99 gradients long.
    expected = {n: (p - 0.1 * 1.99 * p.grad).detach().numpy() for n, p in params.items()}
    assert_trees_close(after["params"], expected, rtol=1e-4, atol=1e-6)


def test_what_is_not_labelled_teaches_nothing_in_a_descent():
    task, data = descending(Descent(steps=9)), windows()
    other = dict(data, images=data["images"].copy(), weights=data["weights"].copy())
    other["images"][data["labels"] < 0] = 50.0
    other["weights"][data["labels"] < 0] = 9.0
    state, step = task.init(jax.random.key(0), {}), jax.jit(task.step)
    (one, _), (two, _) = step(state, data), step(state, other)
    assert_trees_close(one["params"], two["params"], rtol=1e-6)
