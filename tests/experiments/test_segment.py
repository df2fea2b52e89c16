"""The main experiment end to end on small worlds, and what it says to bad input before training."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from densejax.data.synthetic import CLASS_NAMES
from densejax.segmentation.sources import load_parts
from experiments import segment

ROOT = Path(__file__).resolve().parents[2]
SMALL = segment.Config(
    recipe="published",
    baseline=False,
    world=(12, 160, 160),
    network="unet",
    width=4,
    window=(5, 32, 32),
    steps=6,
    log_every=2,
    evaluate_every=4,
    checkpoint_every=2,
    evaluation_windows=3,
    seeds=(0, 1),
)


def write_volume(folder, *, images=None, labels=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (14, 48, 48), np.uint8) if images is None else images
    labels = rng.integers(0, 2, (14, 48, 48), np.uint8) if labels is None else labels
    for name, array in (("images", images), ("labels", labels)):
        tifffile.imwrite(folder / f"{name}.tif", array, photometric="minisblack")
    return replace(
        SMALL,
        image=str(folder / "images.tif"),
        labels=str(folder / "labels.tif"),
        class_names=("outside", "inside"),
        voxel_nm=(50.0, 4.0, 4.0),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("segment")
    return workdir, segment.run(SMALL, workdir)


def test_a_run_leaves_everything_that_is_needed_to_trust_it(finished):
    workdir, summary = finished
    assert summary.failed == 0
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    expected = {"config.json", "provenance.jsonl"}
    expected |= {f"seeds/000{seed}/{name}" for seed in (0, 1) for name in ("DONE", "metrics.jsonl")}
    pictures = ("learning_curves", "peak_miou", "top_k_evaluation", "top_k_test", "class_iou")
    pictures += ("confusion", "orthoslices")
    expected |= {f"summary/{name}.png" for name in pictures}
    expected |= {f"summary/test_{name}.tif" for name in ("labels", "entropy", "disagreement")}
    expected |= {f"summary/{name}" for name in ("scores.csv", "top_k.csv", "summary.json")}
    assert expected <= names
    assert any("tfevents" in name for name in names)
    assert not list((workdir / "running").iterdir())


def test_rows_of_metrics_have_step_and_loss_and_the_score_where_evaluated(finished):
    workdir, _ = finished
    lines = (workdir / "seeds" / "0000" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert ["miou" in row for row in rows] == [False, True, True]


def test_the_segmented_volume_is_the_ensembles_argmax_and_its_size(finished):
    workdir, summary = finished
    labels = tifffile.imread(workdir / "summary" / "test_labels.tif")
    assert labels.shape == summary.test.volume.labels.shape == (6, 160, 160)
    np.testing.assert_array_equal(labels, summary.test.prediction.cumulative[-1])


def test_the_table_of_top_k_agrees_with_a_recount(finished):
    from sklearn.metrics import jaccard_score

    workdir, summary = finished
    with (workdir / "summary" / "top_k.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth = summary.test.volume.labels.ravel()
    for rank, row in enumerate(rows):
        predicted = summary.test.prediction.cumulative[rank].ravel()
        present = np.union1d(truth, predicted)
        expected = jaccard_score(truth, predicted, labels=present, average="macro", zero_division=0)
        assert float(row["test_top_k"]) == pytest.approx(expected, abs=1e-5)


def test_the_same_command_again_trains_nothing_and_more_seeds_only_themselves(finished, capsys):
    workdir, before = finished
    stamp = (workdir / "seeds" / "0000" / "metrics.jsonl").stat().st_mtime_ns
    again = segment.run(SMALL, workdir)
    assert [o.best_score for o in again.outcomes] == [o.best_score for o in before.outcomes]
    capsys.readouterr()
    extended = segment.run(replace(SMALL, seeds=(0, 1, 2)), workdir)
    assert "2 ended before, 0 resumed from a checkpoint, 1 new" in capsys.readouterr().out
    assert len(extended.outcomes) == 3
    assert (workdir / "seeds" / "0000" / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_another_configuration_is_refused_and_the_field_named(finished):
    workdir, _ = finished
    with pytest.raises(ValueError, match=r"learning_rate.*0\.001.*0\.01|learning_rate"):
        segment.run(replace(SMALL, learning_rate=0.01), workdir)


def test_a_diverging_setting_fails_alone_and_is_counted(tmp_path):
    config = replace(SMALL, grid="learning_rate=1e-3,1e30", seeds=(0,))
    summary = segment.run(config, tmp_path)
    assert {o.member.settings["learning_rate"]: o.status for o in summary.outcomes} == {
        1e-3: "DONE",
        1e30: "FAILED",
    }
    assert summary.failed == 1


@pytest.mark.parametrize("network", ["hybrid", "no_3x3x3", "no_pyramid", "unet3d_thin"])
def test_every_network_is_built_and_takes_a_step_shape_wise(network):
    import jax

    config = replace(SMALL, network=network, width=2)
    model, task = segment.build(config, 7)
    state = jax.eval_shape(lambda key: task.init(key, {}), jax.random.key(0))
    assert state["params"]["params"]
    assert model.output_window(config.window) == config.window


def test_users_own_files_are_read_by_path(tmp_path):
    config = write_volume(tmp_path)
    parts = load_parts(config)
    assert parts.class_names == ("outside", "inside")
    assert parts.train.voxel_nm == (50.0, 4.0, 4.0)


BAD = {
    "image and label shapes differ": (
        lambda f: write_volume(f, labels=np.ones((14, 48, 40), np.uint8)),
        r"labels.*\(14, 48, 40\)|\(14, 48, 40\)",
    ),
    "labels outside the classes": (
        lambda f: write_volume(f, labels=np.full((14, 48, 48), 5, np.uint8)),
        r"label 5.*expected 0\.\.1",
    ),
    "float labels": (
        lambda f: write_volume(f, labels=np.zeros((14, 48, 48), np.float32)),
        r"float32.*integer|integer.*float32",
    ),
    "not a number in the volume": (
        lambda f: write_volume(f, images=np.full((14, 48, 48), np.nan, np.float32)),
        r"(?i)nan|finite",
    ),
    "constant volume": (
        lambda f: write_volume(f, images=np.full((14, 48, 48), 7, np.uint8)),
        r"images\.tif.*every voxel of the image is 7",
    ),
    "a class absent from training": (
        lambda f: write_volume(f, labels=np.zeros((14, 48, 48), np.uint8)),
        r"class 1 inside",
    ),
    "missing voxel size": (
        lambda f: replace(write_volume(f), voxel_nm=()),
        r"--voxel_nm",
    ),
    "a window larger than the volume": (
        lambda f: replace(write_volume(f), window=(5, 64, 64)),
        r"\(5, 64, 64\).*\(\d+, 48, 48\)",
    ),
    "a missing file": (
        lambda f: replace(write_volume(f), image=str(f / "nothing.tif")),
        r"nothing\.tif",
    ),
    "labels without names": (
        lambda f: replace(write_volume(f), class_names=()),
        r"--class_names",
    ),
    "a window of two numbers": (
        lambda f: replace(write_volume(f), window=(64, 64)),
        r"--window takes three",
    ),
    "a folder that is not named": (
        lambda f: replace(SMALL, data="vnc"),
        r"--data_folder",
    ),
    "a schedule that does not divide": (
        lambda f: replace(write_volume(f), evaluate_every=3),
        r"evaluate_every=3",
    ),
    "an unknown setting in the grid": (
        lambda f: replace(write_volume(f), grid="learning_rat=1"),
        r"learning_rat",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named_before_anything_is_trained(what, tmp_path):
    make, message = BAD[what]
    workdir = tmp_path / "run"
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        segment.run(make(tmp_path), workdir)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert not (workdir / "running").exists() and not (workdir / "seeds").exists()


def test_a_truncated_tiff_is_named(tmp_path):
    config = write_volume(tmp_path)
    path = Path(config.image)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape("images.tif")):
        segment.run(config, tmp_path / "run")


def test_an_unknown_flag_is_refused_with_a_suggestion_and_exit_code():
    command = [sys.executable, "-m", "experiments.segment", "--learning_rat=1", "--workdir=x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "learning_rate" in done.stderr


def test_the_synthetic_world_has_every_class_in_every_part():
    parts = load_parts(SMALL)
    assert parts.class_names == CLASS_NAMES
    for part in (parts.train, parts.evaluation, parts.test):
        assert set(np.unique(part.labels)) == set(range(7))


def write_case(folder, name, shape, *, seed, labelled=np.s_[:], values=(0, 1)):
    """A volume whose classes its grey levels tell, and its labels."""
    rng = np.random.default_rng(seed)
    inside = rng.random(tuple(n // 4 + 1 for n in shape)) < 0.4
    inside = inside.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(slice(n) for n in shape)]
    image = (60 + 90 * inside + rng.normal(0, 10, shape)).astype(np.uint8)
    labels = np.full(shape, -1, np.int16)
    labels[labelled] = np.where(inside, values[1], values[0])[labelled]
    for what, array in (("im", image), ("lb", labels)):
        (folder / what).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / what / f"{name}.tif", array, photometric="minisblack")
    return folder / "im" / f"{name}.tif", folder / "lb" / f"{name}.tif"


OWN = replace(SMALL, class_names=("outside", "inside"), voxel_nm=(50.0, 4.0, 4.0), seeds=(0,))
OWN = replace(OWN, network="unet", width=2, window=(3, 16, 16), steps=4)


def test_three_volumes_of_different_shapes_with_one_that_ranks(tmp_path, capsys):
    shapes = [(8, 40, 32), (6, 24, 56), (10, 32, 32)]
    for i, shape in enumerate(shapes):
        write_case(tmp_path / "train", f"case{i}", shape, seed=i, values=(0, 255))
    judge = write_case(tmp_path / "judge", "e", (6, 32, 40), seed=7, values=(0, 255))
    config = replace(
        OWN,
        image=str(tmp_path / "train" / "im"),
        labels=str(tmp_path / "train" / "lb"),
        evaluation_image=str(judge[0]),
        evaluation_labels=str(judge[1]),
        label_values=(0, 255),
        baseline=True,
    )
    summary = segment.run(config, tmp_path / "run")
    assert summary.failed == 0 and summary.test is summary.evaluation
    out = capsys.readouterr().out
    assert "no volume is left for a test" in out and "case2.tif: train sections 0..9" in out
    numbers = json.loads((tmp_path / "run" / "summary" / "summary.json").read_text())
    assert numbers["test_is_evaluation"] and numbers["test"] == numbers["evaluation"]
    assert (tmp_path / "run" / "summary" / "split.png").exists()
    learned = json.loads((tmp_path / "run" / "learned_from.json").read_text())
    grey = np.concatenate(
        [tifffile.imread(f).ravel() for f in (tmp_path / "train" / "im").iterdir()]
    )
    assert learned["mean"] == pytest.approx(grey.mean())
    assert learned["deviation"] == pytest.approx(grey.std())


def test_each_of_several_volumes_is_divided_and_reported(tmp_path):
    cases = [
        write_case(tmp_path, f"c{i}", s, seed=i) for i, s in enumerate([(14, 24, 24), (16, 32, 24)])
    ]
    image, labels = (",".join(map(str, paths)) for paths in zip(*cases, strict=True))
    summary = segment.run(replace(OWN, image=image, labels=labels), tmp_path / "run")
    each = summary.test.others
    assert [one.volume.images.shape[1:] for one in each] == [(24, 24), (32, 24)]
    known = sum((one.volume.labels >= 0).sum() for one in each)
    assert summary.test.members[0].sum() == known
    np.testing.assert_array_equal(summary.test.members, sum(one.members for one in each))
    folder = tmp_path / "run" / "summary"
    for name, one in zip(("test", "test2"), each, strict=True):
        found = tifffile.imread(folder / f"{name}_labels.tif")
        np.testing.assert_array_equal(found, one.prediction.labels)
    numbers = json.loads((folder / "summary.json").read_text())
    assert len(numbers["test"]["volumes"]) == 2


@pytest.mark.parametrize("recipe", ["published", "planned"])
@pytest.mark.parametrize(
    "labelled", [np.s_[::5], np.s_[:3], np.s_[[4, 9], :14, 20:]], ids=["fifth", "first", "corners"]
)
def test_labels_in_a_part_of_the_volume_train_and_rank(recipe, labelled, tmp_path):
    image, labels = write_case(tmp_path, "a", (20, 40, 40), seed=0, labelled=labelled)
    config = replace(OWN, image=str(image), labels=str(labels), recipe=recipe)
    if recipe == "planned":
        config = replace(config, network=None, window=(1, 16, 16), strides=("1x1x1", "1x2x2"))
    summary = segment.run(config, tmp_path / "run")
    assert summary.failed == 0 and np.isfinite(summary.outcomes[0].best_score)
    text = (tmp_path / "run" / "seeds" / "0000" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert (summary.test.volume.labels >= 0).sum() == summary.test.members[0].sum() > 0


def test_parts_without_labels_are_refused_before_anything_is_trained(tmp_path):
    image, labels = write_case(tmp_path, "a", (20, 40, 40), seed=0, labelled=np.s_[:3])
    config = replace(OWN, image=str(image), labels=str(labels), sections=(10, 4, 4, 1))
    with pytest.raises(
        ValueError, match=r"3 of 20 sections are labelled: 0\.\.2.*--evaluation_image"
    ):
        segment.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
