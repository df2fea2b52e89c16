"""Whole volumes end to end: a small run predicts, is killed, goes on, and says what is wrong."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts

from densejax.cli import save_config
from densejax.data.ome_zarr import open_level
from densejax.data.synthetic import CLASS_NAMES, platelet_world
from densejax.data.volumes import open_volume
from densejax.inference.members import member_probabilities
from densejax.inference.outputs import read_prediction
from densejax.inference.tiles import Windowing, corner, grid_of, slices, whole
from densejax.segmentation import recipes
from densejax.segmentation.runs import LEARNED_FROM, open_run
from densejax.training.checkpoint import save_tree
from experiments import predict, segment

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = recipes.settle(
    segment.Config(
        recipe="published",
        network="unet3d_thin",
        width=2,
        window=(3, 32, 32),
        seeds=(0, 1, 2),
    ),
    None,
)
VOXEL_NM = (50.0, 10.0, 10.0)


def make_run(folder):
    """Three members that were not trained: a run's folder without the minutes."""
    save_config(SETTINGS, folder / "config.json")
    _, task = segment.build(SETTINGS, len(CLASS_NAMES))
    for seed in SETTINGS.seeds:
        place = folder / "seeds" / f"{seed:04d}"
        place.mkdir(parents=True)
        params = task.init_params(jax.random.key(seed))
        save_tree(place / "best", params)
        marker = {"step": 1, "best_score": seed / 10, "best_step": 1, "reason": "all steps made"}
        (place / "DONE").write_text(json.dumps(marker))
    learned = {
        "class_names": CLASS_NAMES,
        "organelles": [2, 3, 4, 5, 6],
        "voxel_nm": VOXEL_NM,
        "mean": 120.0,
        "deviation": 45.0,
    }
    (folder / LEARNED_FROM).write_text(json.dumps(learned))
    return folder


def write_zarr(path, array, *, chunks=(4, 32, 32)):
    store = ts.open(
        {
            "driver": "zarr",
            "kvstore": path.resolve().as_uri() + "/",
            "metadata": {"chunks": chunks},
        },
        create=True,
        shape=array.shape,
        dtype=array.dtype.name,
    ).result()
    store.write(array).result()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    volume = platelet_world(jax.random.key(5), shape=(9, 90, 100))
    write_zarr(folder / "volume.zarr", volume.images)
    return make_run(folder / "run"), folder / "volume.zarr", volume


def config_of(world, **options):
    run, volume, _ = world
    settings = {"run": str(run), "volume": str(volume), "top_k": 2, "voxel_nm": VOXEL_NM}
    # One device: a probe of several ways to spread tiles would compile several programs.
    return predict.Config(**settings | {"block_voxels": 20000, "devices": 1} | options)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("out")
    config = config_of(world, overlap="third", probabilities=True, normalise="run", devices=2)
    return workdir, predict.run(config, workdir)


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for image in sorted(folder.glob("*.zarr"))
        for path in sorted(image.rglob("*"))
        if path.is_file() and not path.name.endswith(".__lock")
    }


def test_the_maps_are_those_of_each_window_in_memory(world, finished):
    workdir, result = finished
    held = read_prediction(workdir)
    run, images = open_run(world[0]), world[2].images
    # A third would be (1, 10, 10); strides are multiples of the pooling.
    assert held["members"] == ["0002", "0001"] and held["overlap"] == [1, 12, 12]
    _, task = segment.build(SETTINGS, len(CLASS_NAMES))
    params = run.load(run.members[:2], task.init_params)
    probabilities = member_probabilities(task.network, params)
    grid = grid_of(images.shape, Windowing((3, 32, 32), (3, 32, 32), (1, 12, 12)))
    mean = np.zeros((*images.shape, len(CLASS_NAMES)), np.float32)
    disagreement = np.zeros(images.shape, np.float32)
    for index in grid.windows(whole(images.shape)):
        shares = probabilities((images[slices(grid.held(index))].astype(np.float32) - 120) / 45)
        place = slices(grid.own(index))
        inner = slices(grid.own(index), origin=corner(grid.held(index)))
        mean[place] = shares.mean(0)[inner]
        other = shares.argmax(-1) != shares.mean(0).argmax(-1)
        disagreement[place] = other.mean(0)[inner]
    # Networks that all say one thing would prove little.
    assert len(np.unique(mean.argmax(-1))) > 2 and 0.01 < np.mean(disagreement > 0) < 0.99
    labels = open_volume(workdir / "labels.zarr")
    assert labels.voxel_nm == VOXEL_NM and result.failed == 0
    found = labels.read()
    ordered = np.sort(mean, axis=-1)
    sure = ordered[..., -1] > ordered[..., -2] + 1e-5  # two programs round differently
    np.testing.assert_array_equal(found[sure], mean.argmax(-1)[sure])
    entropy = -np.sum(mean * np.log(np.maximum(mean, 1e-30)), -1) / np.log(7)
    found = open_volume(workdir / "entropy.zarr").read()
    np.testing.assert_allclose(found, 255 * entropy, atol=0.51)
    found = open_volume(workdir / "disagreement.zarr").read()
    np.testing.assert_array_equal(found[sure], np.rint(255 * disagreement)[sure])
    shares = np.asarray(open_level(workdir / "probabilities.zarr").read().result())
    np.testing.assert_allclose(np.moveaxis(shares, 0, -1), 255 * mean, atol=0.51)


def test_a_prediction_leaves_what_the_others_read(finished):
    workdir, result = finished
    held = read_prediction(workdir)
    for name in ("volume", "run", "dataset", "views", "blend", "mean", "deviation"):
        assert name in held
    assert held["shape"] == [9, 90, 100] and held["offset"] == [0, 0, 0]
    assert (held["mean"], held["deviation"]) == (120.0, 45.0)
    assert held["class_names"] == list(CLASS_NAMES) and held["not_predicted"] == 255
    for name in ("config.json", "provenance.jsonl", "summary.json", "orthoslices.png"):
        assert (workdir / name).exists(), name
    summary = json.loads((workdir / "summary.json").read_text())
    labels = open_volume(workdir / "labels.zarr").read()
    assert list(summary["classes"].values()) == np.bincount(labels.ravel(), minlength=7).tolist()
    assert all(path.exists() for path in result.files)
    levels = json.loads((workdir / "labels.zarr" / "zarr.json").read_text())
    assert len(levels["attributes"]["ome"]["multiscales"][0]["datasets"]) > 1


def test_the_same_command_again_does_nothing_and_another_is_refused(world, finished, capsys):
    workdir, _ = finished
    before = files_of(workdir)
    config = config_of(world, overlap="third", probabilities=True, normalise="run")
    result = predict.run(replace(config, devices=1), workdir)
    assert result.clock.windows == 0 and files_of(workdir) == before
    assert "disagreement" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"another configuration: .*views was .*one.* and is .*flips"
    ):
        predict.run(replace(config, views="flips"), workdir)
    assert files_of(workdir) == before


def test_members_that_were_trained_anew_are_another_prediction(world, finished, tmp_path):
    workdir, _ = finished
    held = json.loads((workdir / "prediction.json").read_text())
    config = config_of(world, overlap="third", probabilities=True, normalise="run")
    (tmp_path / "prediction.json").write_text(json.dumps(held | {"members_checksum": "0"}))
    with pytest.raises(ValueError, match=r"another prediction: members_checksum was \"0\" and is"):
        predict.run(config, tmp_path)


def test_a_part_is_what_the_whole_is_there(world, finished, tmp_path):
    workdir, _ = finished
    config = config_of(
        world, overlap="third", probabilities=True, normalise="run", part="2:7,11:80,:50"
    )
    predict.run(config, tmp_path)
    whole = open_volume(workdir / "labels.zarr").read()[2:7, 11:80, :50]
    found = open_volume(tmp_path / "labels.zarr")
    np.testing.assert_array_equal(found.read(), whole)
    assert read_prediction(tmp_path)["offset"] == [2, 11, 0]
    assert read_prediction(tmp_path)["shape"] == [5, 69, 50]


@pytest.mark.parametrize(
    "options",
    [
        {"blend": "gaussian", "format": "0.4"},
        {"views": "flips", "overlap": "0,8,8", "part": ":3,:,:"},
    ],
)
def test_other_ways_to_predict(world, tmp_path, options):
    result = predict.run(config_of(world, **options), tmp_path)
    labels = open_volume(tmp_path / "labels.zarr").read()
    assert result.failed == 0 and labels.max() < 7
    held = read_prediction(tmp_path)
    images = world[2].images[:3] if "part" in options else world[2].images
    np.testing.assert_allclose(held["mean"], images.mean(), rtol=1e-12)
    np.testing.assert_allclose(held["deviation"], images.std(), rtol=1e-12)


def command(config, workdir):
    flags = [f"--{name}={getattr(config, name)}" for name in ("run", "volume", "top_k", "overlap")]
    flags += [f"--block_voxels={config.block_voxels}", f"--workdir={workdir}"]
    flags += ["--voxel_nm=" + ",".join(map(str, config.voxel_nm))]
    return [sys.executable, "-m", "experiments.predict", *flags]


@pytest.mark.slow
def test_killed_again_and_again_the_bytes_are_those_of_one_run(world, tmp_path):
    run, _, _ = world
    volume = platelet_world(jax.random.key(6), shape=(24, 256, 256))
    write_zarr(tmp_path / "volume.zarr", volume.images)
    config = predict.Config(
        run=str(run),
        volume=str(tmp_path / "volume.zarr"),
        top_k=3,
        voxel_nm=VOXEL_NM,
        overlap="third",
        block_voxels=60000,
    )
    subprocess.run(command(config, tmp_path / "whole"), check=True, cwd=ROOT)
    random = np.random.default_rng(0)
    kills = 0
    for _ in range(5):
        child = subprocess.Popen(command(config, tmp_path / "killed"), cwd=ROOT)
        blocks = tmp_path / "killed" / "blocks"
        before = len(list(blocks.glob("*.done")))
        while child.poll() is None and len(list(blocks.glob("*.done"))) <= before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))
        kills += child.poll() is None
        child.kill()
        child.wait()
    both = [subprocess.Popen(command(config, tmp_path / "killed"), cwd=ROOT) for _ in range(2)]
    assert [child.wait(timeout=300) for child in both] == [0, 0]
    assert kills >= 3
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


# ---- bad input ----


def test_voxels_unlike_the_training_runs_are_warned_of(world, tmp_path, capsys):
    config = config_of(world, voxel_nm=(50.0, 4.0, 4.0), part=":3,:32,:32", overlap="third")
    predict.run(config, tmp_path)
    warned = capsys.readouterr().err
    assert "50 x 4 x 4 nm" in warned and "50 x 10 x 10 nm" in warned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 4}, r"--top_k=4: .* has 3 members"),
        ({"window": (10, 32, 32)}, r"volume.zarr.*\(10, 32, 32\) does not fit.*\(9, 90, 100\)"),
        ({"part": "0:10,:,:"}, r"'0:10,:,:' of a volume of shape \(9, 90, 100\)"),
        ({"part": "a:b,:,:"}, r"expected z0:z1,y0:y1,x0:x1"),
        ({"overlap": "half"}, r"--overlap=half"),
        ({"overlap": "1,32,32"}, r"overlap \(1, 32, 32\).*\(3, 32, 32\)"),
        ({"devices": 99}, r"--devices=99"),
        ({"voxel_nm": ()}, r"states no voxel size"),
        ({"chunk": (0, 8, 8)}, r"--chunk"),
        ({"grey_levels": (1.0,)}, r"--grey_levels"),
        ({"volume": ""}, r"--volume is needed"),
    ],
)
def test_bad_settings_are_named(world, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        predict.run(config_of(world, **options), tmp_path)
    assert not list(tmp_path.glob("*.zarr"))


def test_a_run_of_other_classes_is_refused(world, tmp_path):
    run = make_run(tmp_path / "run")
    learned = json.loads((run / LEARNED_FROM).read_text())
    (run / LEARNED_FROM).write_text(json.dumps(learned | {"class_names": ["outside", "inside"]}))
    with pytest.raises(
        ValueError, match=r"seeds/0002/best.*bias.*float32\[7\], expected float32\[2\]"
    ):
        predict.run(replace(config_of(world), run=str(run)), tmp_path / "out")


def test_an_older_run_has_no_grey_levels_to_normalise_by(world, tmp_path):
    run = make_run(tmp_path / "run")
    (run / LEARNED_FROM).unlink()
    config = replace(config_of(world, normalise="run", overlap="third"), run=str(run))
    with pytest.raises(ValueError, match=r"--grey_levels=MEAN,DEVIATION"):
        predict.run(config, tmp_path / "out")


def test_what_cannot_fit_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr("densejax.inference.whole_volume.memory_limit", lambda devices: 10**8)
    with pytest.raises(MemoryError, match=r"about .* GB of memory, and 0.10 GB are available"):
        predict.run(config_of(world, overlap="third"), tmp_path)


def test_a_disk_that_is_too_small_is_named(world, tmp_path, monkeypatch):
    monkeypatch.setattr("densejax.inference.whole_volume.free_bytes", lambda path: 1000)
    with pytest.raises(OSError, match=r"takes up to 0\.\d MB, .* and 0\.0 MB are free on its disk"):
        predict.run(config_of(world, overlap="third"), tmp_path)


def test_a_bucket_that_asks_for_credentials_says_how_to_give_them(world, tmp_path, monkeypatch):
    def refused(path, **options):
        raise ConnectionError(f"{path}: PERMISSION_DENIED: anonymous caller")

    monkeypatch.setattr("densejax.segmentation.prediction.open_volume", refused)
    with pytest.raises(ConnectionError, match=r"gs://bucket/volume.*application-default login"):
        predict.run(config_of(world, volume="gs://bucket/volume"), tmp_path)


def test_a_broken_chunk_is_named_or_recorded(world, tmp_path):
    volume = world[2].images
    write_zarr(tmp_path / "volume.zarr", volume)
    chunk = tmp_path / "volume.zarr" / "2.2.3"
    assert chunk.exists()
    chunk.write_bytes(b"no chunk")
    config = config_of(
        world, volume=str(tmp_path / "volume.zarr"), overlap="third", block_voxels=5000
    )
    with pytest.raises(ValueError, match=r"volume.zarr"):
        predict.run(config, tmp_path / "stopped")
    result = predict.run(replace(config, skip_unreadable=True), tmp_path / "out")
    assert result.failed > 0
    labels = open_volume(tmp_path / "out" / "labels.zarr").read()
    assert (labels[8:, 64:, 96:] == 255).all() and (labels[0] < 7).any()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["not_predicted"] == (labels == 255).sum() > 0
    assert len(summary["unreadable"]) == result.failed
