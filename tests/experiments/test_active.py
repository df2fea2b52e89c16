"""The experiment of active learning end to end on a tiny world, its settings and refusals."""

import csv
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active.rounds.oracles import LabelsNeededError
from densejax.classification.pretrained import Encoder, fresh, save_encoder
from densejax.cli import few_steps
from experiments import active

ROOT = Path(__file__).resolve().parents[2]
SMALL = active.Config(
    data="tiny",
    limit=80,
    test_limit=30,
    model="mlp",
    width=8,
    strategies=("base", "random"),
    seeds=(0, 1),
    rounds=2,
    initial=12,
    budget=6,
    epochs=2,
    batch=8,
    checkpoint_every=2,
)


def test_a_run_leaves_tables_pictures_and_goes_on(tmp_path, capsys):
    published = tmp_path / "paper.csv"
    published.write_text("strategy,12,18\nBASE,0.3,0.5\nRandom Sampler,30,\nOther,1,2\n")
    config = replace(SMALL, published=str(published))
    results = active.run(config, tmp_path / "run")
    assert results.failed == 0 and results.accuracy.shape == (2, 2, 2)
    assert results.labelled.tolist() == [12, 18]
    folder = tmp_path / "run" / "summary"
    pictures = ("accuracy", "imbalance_ratio", "class_entropy", "classes")
    assert {f"{name}.png" for name in pictures} <= {path.name for path in folder.iterdir()}
    with (folder / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        counts = [float(v) for name, v in row.items() if name.startswith("labelled_")]
        assert sum(counts) == float(row["labelled"])
    numbers = json.loads((folder / "summary.json").read_text())
    against = numbers["strategies"]["base"]["against_random"]["difference"]["value"]
    area = results.accuracy.mean(axis=(1, 2))
    np.testing.assert_allclose(against, area[0] - area[1], atol=1e-9)
    assert "break-even" in capsys.readouterr().out
    more = active.run(replace(config, rounds=3), tmp_path / "run")
    np.testing.assert_array_equal(more.accuracy[..., :2], results.accuracy)
    with pytest.raises(ValueError, match=r"budget was 6 and is 7"):
        active.run(replace(config, budget=7), tmp_path / "run")
    with pytest.raises(ValueError, match=r"seeds was .* and is"):
        active.run(replace(config, seeds=(0, 1, 2)), tmp_path / "run")


def test_runs_of_other_seeds_are_summarised_as_one(tmp_path):
    config = replace(SMALL, strategies=("margin", "random"))
    whole = active.run(replace(config, seeds=(0, 1, 2)), tmp_path / "whole")
    for seeds in ((0,), (1, 2)):
        active.run(replace(config, seeds=seeds), tmp_path / f"{seeds[0]}")
    folders = (str(tmp_path / "0"), str(tmp_path / "1"))
    found = active.run(replace(config, combine=folders), tmp_path / "both")
    assert found.seeds == (0, 1, 2) and found.strategies == ("margin", "random")
    np.testing.assert_array_equal(found.accuracy, whole.accuracy)
    for name in ("rounds.csv", "summary.json"):
        both = [(tmp_path / run / "summary" / name).read_bytes() for run in ("both", "whole")]
        assert both[0] == both[1]
    with pytest.raises(ValueError, match=r"seeds \[0\] are in more than one run"):
        active.run(replace(config, combine=folders[:1] * 2), tmp_path / "twice")
    with pytest.raises(ValueError, match="budget was 6 and is 7"):
        active.run(replace(config, budget=7, combine=folders), tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        active.run(replace(config, combine=(str(tmp_path),)), tmp_path / "none")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("mode", ["linear", "end_to_end"])
def test_a_checkpoint_decides_the_network(tmp_path, mode):
    encoder = Encoder("resnet20", 2, "cifar", (0.5,) * 3, (0.25,) * 3)
    save_encoder(tmp_path / "ssp", encoder, fresh(jax.random.key(0), encoder))
    config = replace(SMALL, pretrained=str(tmp_path / "ssp"), mode=mode, model=None, width=None)
    whole = active.filled(config)
    assert whole.frozen_norm
    source = active.load(whole)
    task = active.build(whole, source, 18)
    variables = task.init_variables(jax.random.key(1))
    logits, _ = task.forward(variables, source.images[:2])
    assert (
        logits.shape == (2, 4) and task.mean == encoder.mean and task.linear == (mode == "linear")
    )
    again = task.init_variables(jax.random.key(2))
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), variables, again)["params"]
    assert not same.pop("head")["kernel"] and all(jax.tree.leaves(same))
    grey = replace(source, images=source.images[..., :1])
    with pytest.raises(ValueError, match="pictures of 3 channels"):
        active.build(whole, grey, 18)


def test_settings_fill_in_what_is_not_said():
    first = active.filled(active.Config(setting="A-I"))
    assert (first.initial, first.budget, first.epochs, first.patience) == (1000, 1000, 200, 50)
    assert (first.learning_rate, first.weight_decay, first.weighted) == (1e-3, 5e-4, False)
    assert (first.validation, first.schedule, first.width) == (0.1, "cosine", 64)
    assert active.filled(active.Config(values="thesis")).validation == 0.01
    second = active.filled(active.Config(setting="B-I", budget=7))
    assert (second.imbalance, second.weighted, second.budget) == (0.1, True, 7)
    third = active.filled(active.Config(setting="C-II", values="thesis"))
    assert (third.mode, third.learning_rate, third.decay_every) == ("linear", 15.0, 20)
    assert active.filled(active.Config(setting="C-I")).decay_every == 10


def query_of(folder, name):
    """Scores and predictions of the first query of a strategy, as it is kept."""
    with np.load(folder / "rounds/00/query.npz") as query:
        (row,) = np.flatnonzero(query["names"] == name)
        return query["scores"][row], query["predicted"][row]


def test_queries_of_passes_networks_and_experts_run_to_the_end(tmp_path):
    names = ("bald", "odin", "expert")
    config = replace(SMALL, strategies=names, seeds=(0,), dropout=0.5, passes=4)
    results = active.run(config, tmp_path)
    assert results.failed == 0 and results.accuracy.shape == (3, 1, 2)
    for name in names:
        scores, predicted = query_of(tmp_path, name)
        assert (np.diff(scores) <= 0).all() and scores[0] > 0 and (predicted >= 0).all()
    assert (tmp_path / "experts/seeds/0000/DONE").exists()


@pytest.mark.slow
def test_vaal_runs_to_the_end(tmp_path):
    config = replace(SMALL, strategies=("vaal",), seeds=(0,), vaal_steps=3, vaal_width=2)
    results = active.run(config, tmp_path)
    scores, predicted = query_of(tmp_path, "vaal")
    # It asks no classifier what a picture is.
    assert results.failed == 0 and (np.diff(scores) >= 0).all() and (predicted == -1).all()


def test_linear_evaluation_on_features(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("test", 20)):
        labels = np.arange(n) % 3
        features = rng.normal(size=(n, 5)).astype(np.float32)
        features[np.arange(n), labels] += 4
        np.save(tmp_path / f"{part}_features.npy", features)
        np.save(tmp_path / f"{part}_labels.npy", labels)
    config = replace(
        SMALL, setting="C-II", data="features", data_folder=str(tmp_path), model=None, width=None
    )
    config = replace(config, limit=0, test_limit=0, validation=0.2, learning_rate=0.5, epochs=5)
    results = active.run(config, tmp_path / "run")
    assert results.accuracy[:, :, -1].min() > 0.7


def test_a_person_is_asked_by_file(tmp_path):
    config = replace(SMALL, oracle="file")
    with pytest.raises(LabelsNeededError, match=r"rounds/00/query\.csv"):
        active.run(config, tmp_path)
    assert (tmp_path / "config.json").exists()


def test_a_run_of_before_the_newer_flags_goes_on(tmp_path):
    config = replace(SMALL, oracle="file")
    newer = ("verify", "dropout", "radius", "passes")
    newer += ("odin_temperature", "odin_step", "vaal_steps", "vaal_width")
    for start in range(2):
        with pytest.raises(LabelsNeededError):
            active.run(config, tmp_path)
        path = tmp_path / "config.json"
        fields = json.loads(path.read_text())
        assert all((name in fields) == (start == 0) for name in newer)
        path.write_text(json.dumps({n: v for n, v in fields.items() if n not in newer}, indent=2))
    with pytest.raises(ValueError, match=r"dropout was 0\.0 and is 0\.5"):
        active.run(replace(config, dropout=0.5), tmp_path)


def test_a_run_without_odin_goes_on_whatever_its_step_was(tmp_path):
    config = replace(SMALL, oracle="file")
    with pytest.raises(LabelsNeededError):
        active.run(config, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"odin_step": 0.0', '"odin_step": 0.0014'))
    assert "0.0014" in path.read_text()
    with pytest.raises(LabelsNeededError):
        active.run(config, tmp_path)
    with pytest.raises(ValueError, match=r"strategies"):
        active.run(replace(config, strategies=("odin",)), tmp_path)


def test_bad_input_is_refused_before_training(tmp_path):
    for options, message in (
        ({"strategies": ("base", "best")}, "strategies base, best: expected each once"),
        ({"strategies": ("base", "base")}, "expected each once"),
        ({"budget": 100}, r"want 112; the pool has"),
        ({"budget": -5}, "budget must be at least 1, found -5"),
        ({"validation": 1.5}, "validation 1.5"),
        ({"oracle": "file", "strategies": ("balancing",)}, "needs labels before"),
        ({"oracle": "file", "strategies": ("expert",)}, "expert needs labels before"),
        ({"strategies": ("bald", "random")}, "bald needs stochastic passes, .*--dropout"),
        ({"model": "head", "dropout": 0.5}, "a head alone has no layer of dropout"),
        ({"dropout": 1.0}, "dropout is 1.0; expected 0 or more, below 1"),
        ({"strategies": ("probcover",)}, "probcover needs --radius"),
        ({"strategies": ("odin",), "odin_temperature": 0.0}, "temperature 0.0"),
        ({"strategies": ("vaal",), "vaal_steps": 0}, "vaal: steps are 0"),
    ):
        with pytest.raises(ValueError, match=message):
            active.run(replace(SMALL, **options), tmp_path)
    with pytest.raises(FileNotFoundError):
        active.run(replace(SMALL, data="imagenet", data_folder=str(tmp_path)), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"encoder\.json"):
        active.run(replace(SMALL, pretrained=str(tmp_path)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_set_is_read_unless_it_is_to_be_verified(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, n in (("data_batch_1", 60), ("test_batch", 20)):
        data = rng.integers(0, 256, (n, 3072), np.uint8)
        batch = {"data": data, "labels": (np.arange(n) % 10).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    config = active.filled(active.Config(data_folder=str(folder.parent)))
    source = active.load(config)
    assert source.images.shape == (60, 32, 32, 3) and source.name == "cifar10 subset train"
    with pytest.raises((ValueError, FileNotFoundError), match="data_batch_2"):
        active.load(replace(config, verify=True))


def test_help_lists_strategies_and_flags():
    command = [sys.executable, "-m", "experiments.active", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for word in ("partitioned_badge", "vaal", "--oracle", "--pretrained", "--dropout", "query.csv"):
        assert word in said


@pytest.mark.parametrize("said", [{"radius": 0.5}, {"odin_step": 0.1}, {"vaal_steps": 3}])
def test_an_option_that_no_strategy_uses_is_refused_before_training(tmp_path, said):
    name = "vaal" if "vaal_steps" in said else next(iter(said))
    with pytest.raises(ValueError, match=rf"base, random: the option {name} .* is not used"):
        active.run(replace(SMALL, **said), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_run_of_few_steps_says_of_vaal_is_no_option_unused():
    fast = few_steps(SMALL)
    assert (fast.vaal_steps, fast.vaal_width) == (2, 8)
    config = active.filled(fast)
    source = active.load(config)
    assert list(active.ask(config, source, active.build(config, source, 1))) == ["base", "random"]
