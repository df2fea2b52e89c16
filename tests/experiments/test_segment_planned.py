"""The planned recipe end to end on a small world: its plan, its record, a time, and bad flags."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from absl import flags

import densejax as dj
from densejax.cli import check_same_config, define_flags, from_flags, save_config
from densejax.data.ome_zarr import open_level
from densejax.segmentation import planning, recipes
from densejax.segmentation.finetune.corrections import Subject, digest_of, start_corrections
from densejax.segmentation.runs import read_config
from densejax.segmentation.sources import load_parts
from densejax.training.folders import frames_of
from experiments import predict, segment

# Two scales of two channels compile in seconds.
TINY = segment.Config(
    world=(12, 160, 160),
    width=2,
    window=(1, 64, 64),
    strides=("1x2x2", "1x2x2"),
    kernels=("1x3x3", "1x3x3"),
    prediction_window=(1, 96, 96),
    steps=6,
    log_every=2,
    evaluate_every=2,
    checkpoint_every=2,
    evaluation_windows=2,
    average=0.5,
    seeds=(0,),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("planned")
    return workdir, segment.run(TINY, workdir)


def test_the_plan_is_kept_whole_and_read_back(finished):
    workdir, _ = finished
    kept = json.loads((workdir / "config.json").read_text())
    assert kept["recipe_version"] == planning.RECIPE_VERSION
    decided = ("network", "batch", "learning_rate", "class_share", "views", "stem", "precision")
    assert all(kept[name] is not None for name in decided)
    assert kept["window"] == [1, 64, 64] and kept["width"] == 2
    assert None not in [kept["augmentation"][name] for name in ("gamma", "resampling", "blur")]
    read = read_config(segment.Config, workdir)
    model, task = segment.build(read, 7)
    assert model.output_window((1, 96, 96)) == (1, 96, 96)
    assert task.descent is not None and task.descent.steps == 6


def test_the_forest_stands_beside_the_networks_in_table_and_pictures(finished):
    workdir, summary = finished
    numbers = json.loads((workdir / "summary" / "summary.json").read_text())
    assert numbers["random_forest"]["test"] == pytest.approx(summary.forest.miou)
    assert "random forest" in (workdir / "summary" / "class_iou.csv").read_text()
    assert (workdir / "summary" / "augmented.png").stat().st_size > 10_000


def test_the_same_command_again_plans_and_trains_nothing(finished, capsys):
    workdir, before = finished
    kept = (workdir / "config.json").read_text()
    again = segment.run(TINY, workdir)
    assert [o.best_score for o in again.outcomes] == [o.best_score for o in before.outcomes]
    assert (workdir / "config.json").read_text() == kept
    assert "\nplan\n" not in capsys.readouterr().out


def test_another_value_of_what_was_planned_is_refused(finished):
    workdir, _ = finished
    with pytest.raises(ValueError, match=r"learning_rate was 0\.003 and is 0\.01"):
        segment.run(replace(TINY, learning_rate=0.01), workdir)


def test_a_folder_of_another_recipe_or_version_is_refused(finished, tmp_path):
    workdir, _ = finished
    with pytest.raises(ValueError, match=r"begun with --recipe=planned, found --recipe=published"):
        segment.run(segment.Config(recipe="published"), workdir)
    kept = json.loads((workdir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(kept | {"recipe_version": 99}))
    with pytest.raises(ValueError, match=r"version 99.*version 1.*--workdir"):
        segment.run(TINY, tmp_path)


def test_a_run_from_before_there_were_recipes_is_a_published_one(tmp_path):
    published = recipes.settle(segment.Config(recipe="published", network="unet", width=4), None)
    save_config(published, tmp_path / "config.json")
    kept = json.loads((tmp_path / "config.json").read_text())
    new = {"recipe", "recipe_version", "minutes", "baseline", "norm", "loss", "optimiser"}
    new |= {"schedule", "views", "blend", "prediction_window", "precision"}
    new |= set(recipes.PLANNED_ONLY)
    old = {name: value for name, value in kept.items() if name not in new}
    for name in ("quarter_turns", "resampling", "rotation", "scaling", "warp", "gamma"):
        del old["augmentation"][name]
    (tmp_path / "config.json").write_text(json.dumps(old))
    read = read_config(segment.Config, tmp_path)
    assert (read.recipe, read.network, read.width) == ("published", "unet", 4)
    assert segment.build(read, 7)[1].descent is None
    with pytest.raises(ValueError, match="--recipe=published"):
        recipes.begun_with(TINY, tmp_path)
    asked = segment.Config(recipe="published", network="unet", width=4)
    goes_on = recipes.settle(recipes.begun_with(asked, tmp_path), None)
    check_same_config(goes_on, tmp_path, ignore=segment.VARYING)
    with pytest.raises(ValueError, match=r"width was 4 and is 5"):
        other = recipes.begun_with(replace(asked, width=5), tmp_path)
        check_same_config(recipes.settle(other, None), tmp_path, ignore=segment.VARYING)


def test_whole_volumes_are_predicted_as_the_run_does_it(finished):
    workdir, _ = finished
    config = predict.as_the_run(predict.Config(run=str(workdir)))
    assert (config.views, config.blend) == ("turns", "gaussian")
    assert predict.as_the_run(replace(config, views="one")).views == "one"


def test_a_planned_network_predicts_a_volume_of_a_file(finished, tmp_path):
    workdir, summary = finished
    image = np.asarray(summary.test.volume.images)[:2, :150, :140]
    tifffile.imwrite(tmp_path / "image.tif", image, photometric="minisblack")
    voxel_nm = summary.test.volume.voxel_nm
    asked = predict.Config(
        run=str(workdir), volume=str(tmp_path / "image.tif"), top_k=1, voxel_nm=voxel_nm
    )
    assert predict.run(asked, tmp_path / "out").failed == 0
    found = open_level(tmp_path / "out" / "labels.zarr").read().result()
    whole = dj.load(workdir).predict(image, voxel_nm=voxel_nm)
    # Windows overlap otherwise, and a norm's moments are those of a window.
    assert np.mean(found == whole.labels) > 0.9


def test_a_loaded_run_segments_an_array_as_the_run_did(finished):
    workdir, summary = finished
    volume = summary.test.volume
    ensemble = dj.load(workdir)
    assert ensemble.members == ("0000",) and "1 member;" in repr(ensemble)
    found = ensemble.predict(volume.images, voxel_nm=volume.voxel_nm)
    np.testing.assert_array_equal(found.labels, summary.test.prediction.labels)
    np.testing.assert_array_equal(found.entropy, summary.test.prediction.entropy)
    np.testing.assert_array_equal(found.probabilities.argmax(-1), found.labels)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-5)
    assert not found.disagreement.any() and found.class_names == volume.class_names


def test_what_a_loaded_run_cannot_segment_is_refused(finished, monkeypatch, capsys):
    workdir, summary = finished
    voxel = summary.test.volume.voxel_nm
    images = summary.test.volume.images
    ensemble = dj.load(workdir)
    with pytest.raises(ValueError, match=r"shape \(160, 160\): expected \[z, y, x\]"):
        ensemble.predict(images[0], voxel_nm=voxel)
    with pytest.raises(ValueError, match="three lengths z, y, x in nm"):
        ensemble.predict(images, voxel_nm=(4.0, 4.0))
    with pytest.raises(ValueError, match=r"top_k=2.*1 members"):
        dj.load(workdir, top_k=2)
    monkeypatch.setenv("DENSEJAX_MEMORY_BYTES", "1000")
    with pytest.raises(MemoryError, match=r"give folder="):
        ensemble.predict(images, voxel_nm=(500.0, 4.0, 4.0))
    assert "have not seen structures of such sizes" in capsys.readouterr().err


def test_the_time_is_planned_from_a_probe_and_nothing_of_the_probe_stays(tmp_path, capsys):
    timed = replace(
        TINY, minutes=60.0, steps=None, log_every=None, evaluate_every=None, checkpoint_every=None
    )
    steps = {}

    def stop(config, sweep, **options):
        # Windows of 96 that share a third: one of the six sections, two along y and two along x.
        assert options["voxels"] == 2 * 6 * 2 * 2 * 96 * 96
        found = fit(config, sweep, **options)
        steps["planned"] = found.steps
        return replace(found, steps=6, log_every=2, evaluate_every=2, checkpoint_every=2)

    fit, recipes.fit_time = recipes.fit_time, stop
    try:
        summary = segment.run(timed, tmp_path / "timed")
    finally:
        recipes.fit_time = fit
    assert steps["planned"] > 100
    assert re.search(r"s are left of 60 minutes; a step takes \d+ ms", capsys.readouterr().out)
    plain = segment.run(TINY, tmp_path / "plain")
    assert summary.outcomes[0].best_score == plain.outcomes[0].best_score
    np.testing.assert_array_equal(summary.test.prediction.labels, plain.test.prediction.labels)


def test_a_run_trains_on_with_corrections_and_records_frames(finished, tmp_path):
    before, _ = finished
    parts = load_parts(TINY)
    random = np.random.default_rng(0)
    unseen = random.integers(0, 250, (2, 80, 80)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "unseen.tif", unseen, photometric="minisblack")
    stored = random.integers(0, 7, (1, 72, 70)).astype(np.uint8)
    folder = tmp_path / "corrections" / "collected" / "0001"
    subject = Subject(
        str(tmp_path / "unseen.tif"), None, unseen.shape, parts.train.voxel_nm, parts.class_names
    )
    start_corrections(tmp_path / "corrections", subject)
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "block_0.tif", stored)
    block = {"name": "block_0", "file": "block_0.tif", "export": "export 1", "offset": [0, 0, 0]}
    block |= {"shape": [1, 72, 70], "digest": digest_of(stored), "mean": 125.0, "deviation": 72.0}
    (folder / "collected.json").write_text(json.dumps({"blocks": [block]}))
    config = replace(
        TINY,
        width=None,
        strides=None,
        kernels=None,
        init_from=str(before),
        extra_labels=str(tmp_path / "corrections"),
        record=2,
    )
    summary = segment.run(config, tmp_path / "after")
    kept = json.loads((tmp_path / "after" / "config.json").read_text())
    assert (kept["width"], kept["strides"]) == (2, ["1x2x2", "1x2x2"])
    assert [step for step, _ in frames_of(tmp_path / "after" / "seeds" / "0000")] == [0, 2, 4, 6]
    assert summary.outcomes[0].step == 6


def test_the_split_does_not_depend_on_the_window():
    shapes = {
        load_parts(replace(TINY, window=window)).evaluation.images.shape
        for window in ((1, 64, 64), (5, 32, 32))
    }
    assert shapes == {(6, 160, 160)}


@pytest.mark.parametrize("network", ["hybrid", "unet", "unet3d_thin", "planned_unet"])
@pytest.mark.parametrize("norm", ["group", "none"])
def test_every_network_trains_by_the_planned_recipe_shape_wise(network, norm):
    import jax

    config = segment.Config(world=(12, 160, 160), network=network, width=2, norm=norm, batch=2)
    parts = load_parts(config)
    config = recipes.settle(config, parts)
    model, task = segment.build(config, 7)
    state = jax.eval_shape(lambda key: task.init(key, {}), jax.random.key(0))
    names = {str(p[-1]) for p, _ in jax.tree_util.tree_flatten_with_path(state["params"])[0]}
    assert ("['scale']" in names) == (norm == "group")
    assert model.output_window(config.window)[0] == config.window[0]


BAD = {
    "steps and minutes": (replace(TINY, minutes=5.0), r"--minutes=5.*--steps=6.*one of them"),
    "a time below nothing": (segment.Config(minutes=-1.0), r"--minutes=-1"),
    "a scale's flag for another network": (
        segment.Config(network="hybrid", stem=2),
        r"--stem is of --network=planned_unet",
    ),
    "a planned network in the published recipe": (
        segment.Config(recipe="published", network="planned_unet"),
        r"planned_unet has no published setting",
    ),
    "half of the published descent": (
        segment.Config(optimiser="published"),
        r"--optimiser=published with --schedule=polynomial",
    ),
    "Dice by the published optimiser": (
        segment.Config(recipe="published", loss="dice"),
        r"--optimiser=published has the published loss",
    ),
    "two ways to sample": (
        replace(TINY, spacing=(2, 21, 21), class_share=0.5),
        r"--spacing.*--class_share",
    ),
    "an average that forgets nothing": (replace(TINY, average=1.0), r"--average=1"),
    "intervals that do not divide": (replace(TINY, evaluate_every=3), r"evaluate_every=3"),
}


def test_none_on_a_command_line_is_none_and_not_the_recipes():
    values = flags.FlagValues()
    define_flags(segment.Config, flag_values=values)
    values(["segment", "--norm=none", "--error_weights=none"])
    config = from_flags(segment.Config, flag_values=values)
    assert (config.norm, config.error_weights) == ("none", "none")
    published = recipes.settle(replace(config, recipe="published"), None)
    assert (published.norm, published.error_weights) == ("none", "none")


@pytest.mark.parametrize("what", BAD)
def test_contradictory_flags_are_refused_before_data_is_read(what, monkeypatch, tmp_path):
    def never(config):
        raise AssertionError("data was read")

    monkeypatch.setattr(segment.sources, "load_parts", never)
    config, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        segment.run(config, tmp_path)


def test_a_window_deeper_than_the_volume_is_refused_with_one_that_fits(tmp_path):
    with pytest.raises(ValueError, match=r"--window=9,64,64.*--window=6,64,64 would"):
        segment.run(replace(TINY, window=(9, 64, 64)), tmp_path)
