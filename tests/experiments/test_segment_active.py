"""Rounds of segmentation by the experiment: presets, files, a person as oracle, refusals."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from densejax.active.rounds.oracles import LabelsNeededError
from experiments import segment_active
from experiments.segment_active import Config, filled, strategy_names


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volume")
    rng = np.random.default_rng(0)
    labels = (rng.random((2, 8, 4)) < 0.4).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    images = (60 + 90 * labels + rng.integers(0, 50, labels.shape)).astype(np.uint8)
    for name, array in (("image", images), ("labels", labels)):
        tifffile.imwrite(folder / f"{name}.tif", array)
    return Config(
        data="files",
        image=str(folder / "image.tif"),
        labels=str(folder / "labels.tif"),
        class_names=("outside", "inside"),
        voxel_nm=(50.0, 10.0, 10.0),
        size=16,
        bin=1,
        count=10,
        width=2.0,
        scales=2,
        queries=("entropy",),
        strategies=("random",),
        seeds=(0,),
        rounds=2,
        initial=3,
        budget=2,
        steps=4,
        batch=2,
        query_drop=0.0,
        train_drop=0.0,
    )


def test_protocols_fill_what_is_not_said():
    roels = filled(Config(protocol="roels", data="vnc"))
    assert (roels.network, roels.width, roels.warm_start, roels.target) == (
        "unet", 8.0, True, "mitochondria",
    )  # fmt: skip
    chen = filled(Config(protocol="chen", data="camvid", budget=7))
    assert (chen.network, chen.unit, chen.warm_start, chen.budget) == ("deeplab", "image", False, 7)
    assert chen.count == 2000 and chen.learning_rate == 0.007
    names = strategy_names(replace(roels, queries=("all",), aggregate=("mean", "count")))
    assert "bald:mean" in names and "bald:count" not in names and "entropy:count" in names
    assert len(set(names)) == len(names) == 1 + 7 + 3
    none = strategy_names(replace(roels, queries=("all",), query_drop=0.0))
    assert not any("bald" in name for name in none)


def test_a_person_labels_what_each_round_asks_for(config, tmp_path):
    known = segment_active.run(config, tmp_path / "known")
    truth = segment_active.load(filled(config)).units
    person, rounds = replace(config, oracle="file"), 0
    while True:
        try:
            results = segment_active.run(person, tmp_path / "person")
            break
        except LabelsNeededError:
            folder = tmp_path / f"person/rounds/{rounds:02d}"
            for line in (folder / "query.csv").read_text().splitlines()[1:]:
                row, name = line.split(",")[:2]
                (folder / "masks").mkdir(exist_ok=True)
                mask = truth.labels[int(row)][0].astype(np.uint8)
                Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
            assert (folder / "predicted").exists() == (rounds > 0)
            rounds += 1
    assert rounds == 2
    np.testing.assert_array_equal(results.score, known.score)
    assert (tmp_path / "person/summary/curves.png").stat().st_size > 1000


@pytest.mark.slow  # up to twenty starts of the program: minutes
def test_twenty_kills_end_in_the_same_queries(config, tmp_path):
    said = {
        "data": "files",
        "image": config.image,
        "labels": config.labels,
        "class_names": "outside,inside",
        "voxel_nm": "50,10,10",
        "queries": "bald",
        "strategies": "random",
        "seeds": "0:2",
        "rounds": "4",
        "initial": "2",
        "budget": "2",
        "steps": "200",
        "warm_start": "true",
        "warm_steps": "200",
    }
    for name in ("size", "bin", "count", "width", "scales", "batch"):
        said[name] = str(getattr(config, name))
    command = [sys.executable, "-m", "experiments.segment_active"]
    command += [f"--{name}={value}" for name, value in said.items()]

    def start(folder):
        return subprocess.Popen(
            [*command, f"--workdir={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read().decode()[-2000:]
    rng, kills, ended = np.random.default_rng(0), 0, False
    while not ended:
        process = start(tmp_path / "killed")
        try:
            ended = process.wait(timeout=rng.uniform(3, 8) if kills < 20 else 300) == 0
            assert ended, process.stderr.read().decode()[-2000:]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills >= 4
    for number in range(4):
        for name in ("query.npz", "look.npz") if number < 3 else ("trained.npz",):
            paths = [tmp_path / run / f"rounds/{number:02d}" / name for run in ("whole", "killed")]
            assert paths[0].read_bytes() == paths[1].read_bytes(), (number, name)
    print(f"{kills} kills")


def test_a_pool_that_changes_is_refused(config, tmp_path):
    folder = tmp_path / "run"
    segment_active.run(replace(config, rounds=1, queries=()), folder)
    images = tifffile.imread(config.image)
    tifffile.imwrite(tmp_path / "image.tif", images ^ 1)
    units = segment_active.load(filled(replace(config, image=str(tmp_path / "image.tif")))).units
    with pytest.raises(ValueError, match="the pool has changed since this run began"):
        segment_active._same_pool(units, folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 40}, "a window of 40 pixels"),
        ({"size": 15}, "takes multiples of 2"),
        ({"count": 100_000}, "expected 1 to"),
        ({"rounds": 9}, "the pool has 10"),
        ({"queries": ("bald",)}, "needs stochastic passes"),
        ({"queries": ("entropy",), "aggregate": ("count",)}, "no entropy of 2 classes"),
        ({"queries": ("ensemble_bald",)}, "needs 2 or more --seeds"),
        ({"strategies": ("entropy:mean",)}, "asked for twice"),
        ({"strategies": ("nearest",)}, "strategy 'nearest'"),
        ({"unit": "crop"}, "a volume has windows"),
        ({"class_names": ()}, "needs --image, --labels and --class_names"),
        ({"oracle": "file", "strategies": ("miou:mean",)}, "needs the true masks"),
    ],
)
def test_what_cannot_be_is_refused_before_training(config, given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        segment_active.run(replace(config, **given), tmp_path / "run")
    assert not (tmp_path / "run/rounds").exists()
