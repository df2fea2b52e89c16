"""Pretraining end to end on a few pictures, and the converter of published files."""

import csv
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densejax.classification.pretrained import load_encoder
from densejax.cli import main
from experiments import convert, pretrain

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder with a few random pictures in the files of CIFAR-10."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, n in (("data_batch_1", 24), ("test_batch", 12)):
        data = random.integers(0, 256, (n, 3072), np.uint8)
        batch = {"data": data, "labels": random.integers(0, 10, n).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder.parent


def config(cifar, **options):
    small = {"architecture": "resnet20", "width": 2, "epochs": 2, "batch": 8, "projection": 4}
    small |= {"queue": 16, "norm_groups": 2, "evaluate_every": 1, "checkpoint_every": 1}
    return pretrain.Config(data_folder=str(cifar), **(small | options))


@pytest.fixture(scope="module")
def finished(cifar, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrain")
    return workdir, pretrain.run(config(cifar), workdir)


def test_a_run_leaves_encoders_tables_and_curves(finished):
    workdir, summary = finished
    assert summary.failed == 0 and summary.encoders == (workdir / "seeds" / "0000",)
    encoder, variables = load_encoder(summary.encoders[0])
    assert (encoder.architecture, encoder.width, encoder.stem) == ("resnet20", 2, "cifar")
    assert encoder.origin == "simclr, 2 epochs of 24 cifar10 images"
    # Moments that have learnt are not those of the start.
    assert np.any(variables["batch_stats"]["norm1"]["mean"] != 0)
    with (workdir / "summary" / "scores.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["status"] == "DONE" and row["steps"] == "6"
    assert float(row["test_knn"]) == pytest.approx(summary.test_knn[0])
    assert {path.name for path in summary.files} == {"scores.csv", "loss.png", "knn.png"}
    assert all(path.is_file() for path in summary.files)


def test_the_same_again_trains_nothing_and_another_configuration_is_refused(finished, cifar):
    workdir, before = finished
    stamp = (workdir / "seeds" / "0000" / "encoder.json").stat().st_mtime_ns
    again = pretrain.run(config(cifar), workdir)
    assert again.test_knn.tolist() == before.test_knn.tolist()
    assert (workdir / "seeds" / "0000" / "encoder.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="temperature"):
        pretrain.run(config(cifar, temperature=0.1), workdir)


def test_judges_and_bank_share_no_picture(cifar):
    train, _ = pretrain.load(config(cifar))
    data = pretrain.contrastive_data(train.images, train.labels, evaluation_share=0.25)
    both = np.concatenate([data["bank_rows"], data["evaluation_rows"]])
    assert sorted(both.tolist()) == list(range(24)) and len(data["evaluation_rows"]) == 6
    np.testing.assert_array_equal(data["bank_labels"], train.labels[data["bank_rows"]])


def test_methods_have_their_published_settings(cifar):
    small = config(cifar, batch=256, queue=4096, norm_groups=8)
    train, _ = pretrain.load(small)
    simclr = pretrain.build(small, train)
    moco = pretrain.build(replace(small, method="moco"), train)
    assert (simclr.recipe, simclr.temperature) == ("simclr", 0.5)
    assert (moco.recipe, moco.temperature, moco.momentum) == ("moco", 0.2, 0.99)
    assert (simclr.learning_rate, moco.learning_rate) == (0.2, 0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 25}, "batch is 25.*24 pictures"),
        ({"evaluation_share": 1.0}, "evaluation_share is 1.0"),
        ({"method": "moco", "queue": 20}, "queue is 20"),
    ],
)
def test_bad_input_is_refused_before_training(cifar, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pretrain.run(config(cifar, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_set_is_refused_by_the_command(tmp_path):
    flags = [f"--data_folder={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "experiments.pretrain", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "cifar-10-batches-py" in result.stderr


def converted(*words):
    """The exit code of a command line."""
    options = {"description": convert.__doc__, "workdir": "", "trains": False}
    with pytest.raises(SystemExit) as ended:
        main(convert.Config, convert.run, argv=["convert", *words], **options)
    return ended.value.code


def torch_resnet18(torch, width, prefix):
    """A ResNet-18 with the CIFAR stem, by torchvision's names."""
    state, random = {}, np.random.default_rng(0)

    def put(name, *shape):
        state[prefix + name] = torch.tensor(random.normal(size=shape), dtype=torch.float32)

    def norm(name, c):
        for part in ("weight", "bias", "running_mean", "running_var"):
            put(f"{name}.{part}", c)

    put("conv1.weight", width, 3, 3, 3)
    norm("bn1", width)
    before = width
    for stage in range(4):
        c = width * 2**stage
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            put(f"{name}.conv1.weight", c, before if block == 0 else c, 3, 3)
            put(f"{name}.conv2.weight", c, c, 3, 3)
            norm(f"{name}.bn1", c)
            norm(f"{name}.bn2", c)
            if block == 0 and stage:
                put(f"{name}.downsample.0.weight", c, before, 1, 1)
                norm(f"{name}.downsample.1", c)
        before = c
    return state


@pytest.mark.parametrize(("source", "prefix"), [("simclr", "encoder."), ("moco", "encoder_q.")])
def test_published_files_become_encoders(tmp_path, source, prefix, capsys):
    torch = pytest.importorskip("torch")
    state = torch_resnet18(torch, 2, prefix)
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    out = tmp_path / "out"
    flags = [f"--file={tmp_path / 'weights.pth'}", f"--out={out}", f"--source={source}"]
    assert converted(*flags, "--width=2", "--fast_dev_run") == 0
    assert not out.exists()
    assert converted(*flags, "--width=2") == 0
    encoder, variables = load_encoder(out)
    assert encoder.origin == f"{source}, converted from weights.pth"
    kernel = variables["params"]["layer2_0"]["shortcut_conv"]["kernel"]
    theirs = state[f"{prefix}layer2.0.downsample.0.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, theirs)
    var = variables["batch_stats"]["layer4_1"]["norm2"]["var"]
    np.testing.assert_array_equal(var, state[f"{prefix}layer4.1.bn2.running_var"].numpy())
    # Nothing is written over, and another width is named.
    assert converted(*flags, "--width=2") == 2
    assert "not written over" in capsys.readouterr().err
    flags[1] = f"--out={tmp_path / 'other'}"
    assert converted(*flags, "--width=4") == 2
    assert "does not fit" in capsys.readouterr().err


def test_convert_says_what_it_needs(tmp_path, capsys):
    assert converted() == 2
    assert "--file and --out" in capsys.readouterr().err
    missing = [f"--file={tmp_path / 'no.pth'}", f"--out={tmp_path / 'out'}"]
    assert converted(*missing) == 2
    assert "no.pth is missing" in capsys.readouterr().err
    assert converted("--help") == 0
    assert "--source" in capsys.readouterr().out
