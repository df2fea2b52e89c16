"""Optimisers, the linear model against networks, and poisoned minima of pictures: end to end."""

import csv
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from densejax.classification.populations import compare, read_population
from densejax.classification.sources import THESIS_SVHN_STD, load_poison_sets
from densejax.models.resnet import ResNet
from densejax.models.vgg import VGG
from densejax.optim.published import THESIS
from densejax.training.folders import Member, Outcome
from experiments import linear_versus_net, optimizers, svhn_minima

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder with pictures whose brightness is their class, in the files of CIFAR-10."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, n in (("data_batch_1", 64), ("test_batch", 16)):
        labels = random.integers(0, 10, n)
        data = random.integers(0, 40, (n, 3072)) + 20 * labels[:, None]
        batch = {"data": data.astype(np.uint8), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder.parent


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# ---- optimisers ----


@pytest.fixture
def shallow(monkeypatch):
    """A network that compiles soon in place of VGG13."""

    def vgg(name, classes, *, width, **options):
        return VGG(classes, (1,), (width,), **options)

    monkeypatch.setattr(optimizers, "vgg", vgg)


def optimizer_config(cifar, **options):
    small = {"epochs": 2, "batch": 32, "width": 4, "lbfgs_memory": 2, "lbfgs_iterations": 2}
    small |= {"seeds": (0, 1), "milestones": (1,), "augmented": False}
    return optimizers.Config(data_folder=str(cifar), **(small | options))


def test_optimisers_are_compared_and_a_run_is_extended(cifar, tmp_path, shallow):
    found = optimizers.run(optimizer_config(cifar, optimizers=("momentum",)), tmp_path)
    assert found.failed == 0 and [p.name for p in found.populations] == ["momentum"]
    assert all(path.is_file() for path in found.files)
    stamp = (tmp_path / "momentum" / "seeds" / "0000" / "DONE").stat().st_mtime_ns
    more = optimizers.run(optimizer_config(cifar, optimizers=("asgd",)), tmp_path)
    assert (tmp_path / "momentum" / "seeds" / "0000" / "DONE").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(more.populations[0].last, found.populations[0].last)
    rows = table(tmp_path / "summary" / "accuracy.csv")
    assert [row["name"] for row in rows] == ["momentum", "asgd"]
    assert rows[1]["note"] == "no average before step 1,000,000"
    numbers = json.loads((tmp_path / "summary" / "populations.json").read_text())
    assert float(rows[0]["last_median"]) == pytest.approx(
        np.median(numbers["momentum"]["last"]), abs=1e-4
    )
    with pytest.raises(ValueError, match="epochs was 2 and is 3"):
        optimizers.run(optimizer_config(cifar, epochs=3), tmp_path)


def test_failed_members_are_told_and_count_in_no_median(tmp_path):
    def outcome(seed, status, *accuracies):
        folder = tmp_path / f"{seed:04d}"
        folder.mkdir()
        rows = [{"step": i, "accuracy": a, "train_accuracy": 0.9} for i, a in enumerate(accuracies)]
        text = "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 9, "loss": 1.0}])
        (folder / "metrics.jsonl").write_text(text.replace("1.0}", '1.0, "train_accuracy": 0.8}'))
        return Outcome(Member(seed), status, 9, 0.0, 0, "", folder)

    some = [outcome(0, "DONE", 0.2, 0.6, 0.5), outcome(1, "FAILED"), outcome(2, "DONE", 0.7)]
    first = read_population("first", some)
    assert (first.last.tolist(), first.best.tolist()) == ([0.5, 0.7], [0.6, 0.7])
    assert first.train.tolist() == [0.8, 0.8]
    nobody = read_population("nobody", [outcome(3, "FAILED")])
    found = compare([first, nobody], tmp_path / "summary", title="", notes={"first": "a note"})
    assert found.failed == 2
    rows = table(tmp_path / "summary" / "accuracy.csv")
    assert [(row["failed"], row["last_median"]) for row in rows] == [("1", "0.6000"), ("1", "")]
    assert rows[0]["note"] == "a note" and 0.5 <= float(rows[0]["last_low"]) <= 0.6
    with pytest.raises(ValueError, match="no evaluation in"):
        read_population("none", [outcome(4, "DONE")])


def test_published_settings_of_the_optimisers(cifar):
    from densejax.classification.sources import load_source

    source = load_source("cifar10", cifar)
    config = optimizers.Config()
    tasks = {name: optimizers.build(config, source, name) for name in THESIS}
    rates = {name: task.learning_rate for name, task in tasks.items()}
    assert rates == {
        "sgd": 0.05, "momentum": 0.01, "nesterov": 0.01, "adam": 0.01, "adadelta": 5.0,
        "adagrad": 0.025, "adamax": 5e-4, "asgd": 0.1, "rmsprop": 5e-4, "amsgrad": 5e-4,
        "lbfgs": 0.9, "proxprop": 1e-3,
    }  # fmt: skip
    assert all(task.milestones == (50, 100) and task.batch == 128 for task in tasks.values())
    assert tasks["sgd"].augment is not None and config.weight_decay == 0


# ---- the linear model ----


def linear_config(**options):
    small = {"data": "tiny", "limit": 40, "test_limit": 20, "epochs": 3, "batch": 16, "width": 2}
    small |= {"small": 4, "seeds": (0, 1), "patience": 1, "models": ("linear",)}
    return linear_versus_net.Config(**(small | options))


def test_the_linear_model_end_to_end(tmp_path):
    found = linear_versus_net.run(linear_config(), tmp_path)
    assert found.failed == 0
    rows = {row["name"]: row for row in table(tmp_path / "summary" / "accuracy.csv")}
    pixels, products, classes = 16 * 16 * 3, 48 * 49 // 2, 4
    count = (pixels + products) * classes + classes
    assert rows["linear"]["note"] == f"{count:,} parameters"
    assert float(rows["linear"]["train_median"]) > 0.2


def test_who_lowers_the_rate():
    source = linear_versus_net.load_source("tiny", "", limit=40, test_limit=20)
    data = linear_versus_net.pictures(linear_config(), source)
    assert data["evaluation_images"] is source.test_images and data["counts"][0] == 40
    held = linear_versus_net.pictures(linear_config(held_out=0.25), source)
    assert held["counts"][0] == 30 and len(held["evaluation_labels"]) == 10
    left = source.images[held["query_sets"][0][:30]]
    seen = {one.tobytes() for one in held["evaluation_images"]}
    assert len(seen) == 10 and not any(one.tobytes() in seen for one in left)


def test_published_settings_of_the_linear_model(cifar):
    source = linear_versus_net.load_source("cifar10", cifar)
    config = linear_versus_net.Config()
    linear, net = (linear_versus_net.build(config, source, n) for n in ("linear", "resnet18"))
    assert linear.augment is None and net.augment is not None
    assert (linear.learning_rate, linear.weight_decay, linear.patience) == (0.1, 5e-4, 20)
    with pytest.raises(ValueError, match="model 'mlp': expected one of linear"):
        linear_versus_net.build(config, source, "mlp")


# ---- poisoned minima ----


def test_sets_for_poison_are_apart(cifar):
    world = load_poison_sets("cifar10", cifar, limit=20, poison_limit=0, test_limit=5)
    sizes = {name: len(a) for name, a in world.sets.items() if name.endswith("inputs")}
    assert sizes == {"inputs": 20, "poison_inputs": 32, "test_inputs": 5}
    pictures = [one.tobytes() for n in sizes for one in world.sets[n]]
    assert len(set(pictures)) == 57
    with pytest.raises(ValueError, match="limit is 33; expected 0"):
        load_poison_sets("cifar10", cifar, limit=33)


def test_the_poison_of_svhn_is_its_extra_set(tmp_path):
    random = np.random.default_rng(0)
    for part, n in (("train", 6), ("test", 4), ("extra", 9)):
        arrays = {"X": random.integers(0, 256, (32, 32, 3, n), np.uint8)}
        arrays["y"] = random.integers(1, 11, (n, 1))
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", arrays)
    world = load_poison_sets("svhn", tmp_path)
    assert [len(world.sets[f"{n}labels"]) for n in ("", "poison_", "test_")] == [6, 9, 4]
    extra = scipy.io.loadmat(tmp_path / "extra_32x32.mat")["X"].transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(world.sets["poison_inputs"], extra)
    assert world.std == THESIS_SVHN_STD and world.classes == 10
    seen = np.asarray(world.prepare(world.sets["inputs"][:1]))
    pixel = world.sets["inputs"][0, 0, 0, 2] / 255
    assert seen[0, 0, 0, 2] == pytest.approx((pixel - 0.4728) / 0.1052, rel=1e-4)


def minima_config(cifar, **options):
    small = {"data": "cifar10", "width": 3, "batch": 16, "epochs": 2, "evaluate_every": 1}
    small |= {"seeds": (0, 1), "points": 3, "directions": 4, "rtol": 1e-2, "cutoff": 4.0}
    small |= {"poison": (0.25,), "loss_pictures": 24, "span": 3.0, "learning_rate": 0.01}
    return svhn_minima.Config(data_folder=str(cifar), **(small | options))


@pytest.fixture
def small_resnet(monkeypatch):
    """One block in place of nine."""

    def resnet(classes, *, widths):
        options = {"pre_activation": True, "shortcut": "pool", "stem": "cifar", "leak": 0.1}
        return ResNet(classes, (1,), widths[:1], **options)

    monkeypatch.setattr(svhn_minima, "svhn_resnet20", resnet)


def test_natural_and_poisoned_minima(cifar, tmp_path, small_resnet):
    found = svhn_minima.run(minima_config(cifar), tmp_path)
    assert found.failed == 0 and all(path.is_file() for path in found.files)
    assert [(b.minimum.poison, b.minimum.seed) for b in found.basins] == [
        (0.0, 0), (0.0, 1), (0.25, 0), (0.25, 1)
    ]  # fmt: skip
    assert all(len(b.radii.radius) == 4 for b in found.basins)
    # Kernels of the convolutions and the head move, and nothing else.
    kernels = 9 * 3 * 3 + 2 * 9 * 3 * 3 + 3 * 10
    assert found.basins[0].radii.dimension == kernels - (3 + 3 + 3 + 10)
    assert [row["name"] for row in table(tmp_path / "summary/frozen/minima.csv")] == [
        "0000,natural", "0001,natural", "0000,poison=0.25", "0001,poison=0.25"
    ]  # fmt: skip
    # The natural sweep has no poison, whose pictures would be in its moments.
    rows = (tmp_path / "natural/seeds/0000/metrics.jsonl").read_text().splitlines()
    assert "poison_accuracy" not in json.loads(rows[-1])
    # The same minima again, their moments computed at each point: nothing is trained.
    stamp = (tmp_path / "poisoned/seeds/0000,poison=0.25/DONE").stat().st_mtime_ns
    again = svhn_minima.run(
        replace(minima_config(cifar), batch_norm="recalibrated", directions=0), tmp_path
    )
    assert (tmp_path / "poisoned/seeds/0000,poison=0.25/DONE").stat().st_mtime_ns == stamp
    for one, other in zip(found.basins, again.basins, strict=True):
        assert one.minimum.measures["test_accuracy"] == other.minimum.measures["test_accuracy"]
        assert one.minimum.measures["train_loss"] != other.minimum.measures["train_loss"]
    assert (tmp_path / "summary/recalibrated/surfaces.png").is_file()


def test_published_batches_of_natural_and_poisoned_training(cifar):
    world = load_poison_sets("cifar10", cifar)
    config = svhn_minima.Config()
    natural, _ = svhn_minima.build(config, world, poisoned=False)
    poisoned, _ = svhn_minima.build(config, world, poisoned=True)
    assert (natural.batch, poisoned.batch, poisoned.poison_batch) == (254, 167, 89)
    # 0.35 rounds up to 90 pictures, of which a batch has 89: the published share.
    share, _ = poisoned._shares(np.float32(0.35), np.int32(0), np.float32(167), np.ones(89))
    assert float(share) == pytest.approx(89 / 256)


@pytest.mark.parametrize("shares", [(), (0.0, 0.2), (1.0,)])
def test_bad_shares_are_refused_before_training(cifar, tmp_path, shares):
    with pytest.raises(ValueError, match="expected shares in"):
        svhn_minima.run(minima_config(cifar, poison=shares), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_set_is_refused_by_the_command(tmp_path):
    flags = [f"--data_folder={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "experiments.svhn_minima", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.startswith("error: ")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizers", "linear_versus_net", "svhn_minima"])
def test_fast_dev_run(name, data_folder):
    folder = data_folder / "cifar10_lossless_5k"
    flags = [f"--data_folder={folder}", "--fast_dev_run", "--data=cifar10"]
    command = [sys.executable, "-m", f"experiments.{name}", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
