"""Training on from an earlier run with corrected blocks: what a seed starts and learns from."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile

from densejax.cli import save_config
from densejax.data.augment import draw_window, training_arrays
from densejax.data.extra_windows import draw_mixed_window
from densejax.segmentation import recipes
from densejax.segmentation.finetune import continued
from densejax.segmentation.finetune.corrections import Subject, digest_of, start_corrections
from densejax.segmentation.prepare import sweep_data
from densejax.segmentation.sources import error_weights_of, load_parts
from densejax.segmentation.task import WindowTask
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Member, MemberFolder, Outcome, members_of
from densejax.training.sweep import Schedule, Sweep
from experiments import segment

NAMES = ("outside", "inside")
VOXEL = (50.0, 4.0, 4.0)
UNSEEN = (4, 40, 44)
WINDOW = (2, 16, 16)
TEMPLATE = {"w": jnp.zeros(2), "b": jnp.zeros(2)}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A volume of two textures, and a configuration that trains on it in seconds."""
    folder = tmp_path_factory.mktemp("volume")
    random = np.random.default_rng(0)
    labels = (np.indices((14, 40, 40)).sum(0) // 7 % 2).astype(np.uint8)
    images = random.integers(0, 60, labels.shape).astype(np.uint8) + 90 * labels
    for name, array in (("images", images), ("labels", labels)):
        tifffile.imwrite(folder / f"{name}.tif", array, photometric="minisblack")
    unseen = random.integers(0, 250, UNSEEN).astype(np.uint8)
    tifffile.imwrite(folder / "unseen.tif", unseen, photometric="minisblack")
    config = recipes.settle(
        segment.Config(
            recipe="published",
            baseline=False,
            image=str(folder / "images.tif"),
            labels=str(folder / "labels.tif"),
            class_names=NAMES,
            voxel_nm=VOXEL,
            network="unet",
            width=2,
            window=(2, 16, 16),
            spacing=(1, 8, 8),
            steps=6,
            log_every=2,
            evaluate_every=2,
            checkpoint_every=2,
            evaluation_windows=2,
            seeds=(0, 1),
        ),
        None,
    )
    return folder, config


def brightness(params, images):
    """A network that compiles at once: logits of a voxel from its own grey level."""
    return images * params["w"] + params["b"], {}


def draw_params(key):
    return {"w": jax.random.normal(key, (2,)), "b": jnp.zeros(2)}


def publish(run, config, scores, params):
    """A finished run: seed i has the i-th score and parameters."""
    run.mkdir(parents=True)
    save_config(config, run / "config.json")
    for seed, (score, best) in enumerate(zip(scores, params, strict=True)):
        folder = MemberFolder(run, Member(seed))
        folder.path.mkdir(parents=True)
        last = jax.tree.map(jnp.zeros_like, best)
        folder.publish(Outcome(Member(seed), "DONE", 4, score, 4, "", folder.path), best, last)
    return run


@pytest.fixture
def ancestor(setting, tmp_path):
    """Three members, of which the second is best and the third second."""
    params = [{"w": jnp.float32([seed, 1]), "b": jnp.float32([0, seed])} for seed in range(3)]
    return publish(tmp_path / "ancestor", setting[1], (0.1, 0.6, 0.3), params)


def read(config, parts, workdir):
    return continued.read_continued(
        config,
        parts,
        draw_params,
        weights=error_weights_of(parts, "none"),
        window=WINDOW,
        output=WINDOW,
        workdir=workdir,
    )


def train(config, workdir):
    """As ``experiments.segment`` does, with the small network and without its report."""
    parts = load_parts(config)
    weights = error_weights_of(parts, "none")
    data = sweep_data(
        parts.train, parts.evaluation, weights, at_most=2, window=WINDOW, output=WINDOW
    )
    origin = read(config, parts, workdir)
    workdir.mkdir(exist_ok=True)
    origin.keep(workdir)
    draw = partial(draw_window, input_window=WINDOW, output_window=WINDOW, spacing=(1, 8, 8))
    if config.extra_labels:
        draw = partial(draw_mixed_window, percent=50, **draw.keywords)
    return Sweep(
        WindowTask(draw_params, brightness, draw, 2, learning_rate=config.learning_rate),
        {**data, **origin.data},
        members_of(config.seeds, {}),
        workdir=workdir,
        schedule=Schedule(config.steps, 2, 2, 2),
        begin=origin.warm_start,
    ).run()


def add_corrections(workdir, volume, *, names=NAMES, shape=UNSEEN, seed=0):
    """One more taking back of two blocks."""
    subject = Subject(str(volume), None, shape, VOXEL, names)
    start_corrections(workdir, subject)
    number = len(list(workdir.glob("collected/*"))) + 1
    folder = workdir / "collected" / f"{number:04d}"
    folder.mkdir(parents=True)
    random, rows = np.random.default_rng(seed), []
    for place, offset in enumerate(((0, 0, 0), (3, 20, 10))):
        stored = random.integers(0, 2, (1, 20, 24)).astype(np.uint8)
        stored[0, 5:9] = 255
        tifffile.imwrite(folder / f"block_{place}.tif", stored)
        rows.append(
            {
                "name": f"block_{place}",
                "file": f"block_{place}.tif",
                "export": f"export {number}",
                "offset": [offset[0], offset[1], offset[2] + number - 1],
                "shape": [1, 20, 24],
                "digest": digest_of(stored),
                "mean": 125.0,
                "deviation": 72.0,
            }
        )
    (folder / "collected.json").write_text(json.dumps({"blocks": rows}))
    return workdir


def parameters(workdir, seed, name="last"):
    return jax.tree.leaves(restore_tree(workdir / "seeds" / f"{seed:04d}" / name, TEMPLATE))


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_corrections_a_window_is_drawn_as_ever(setting):
    _, config = setting
    random = np.random.default_rng(1)
    labels = random.integers(-1, 2, (6, 40, 40)).astype(np.int32)
    data = training_arrays(random.normal(size=labels.shape).astype(np.float32), labels)
    model, task = segment.build(config, 2)
    for step in range(5):
        expected = draw_window(
            jax.random.key(3),
            step,
            data,
            input_window=config.window,
            output_window=model.output_window(config.window),
            spacing=config.spacing,
            augmentation=config.augmentation,
        )
        for a, b in zip(task.draw(jax.random.key(3), step, data), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_run_from_scratch_keeps_no_record_and_begins_by_itself(setting, tmp_path):
    _, config = setting
    found = read(config, load_parts(config), tmp_path)
    assert found == continued.Continued() and found.warm_start is None
    found.keep(tmp_path)
    assert not (tmp_path / continued.RECORD).exists()


def test_a_seed_starts_from_the_ranked_member_of_its_number(setting, ancestor, tmp_path):
    """At a learning rate of zero, what a seed ends with is what it began with."""
    config = replace(setting[1], init_from=str(ancestor), learning_rate=0.0, steps=2)
    train(replace(config, seeds=(4, 2, 0, 1)), tmp_path / "run")
    for seed, expected in ((0, 1), (1, 2), (2, 0), (4, 2)):
        assert equal(parameters(tmp_path / "run", seed), parameters(ancestor, expected, "best"))
    record = json.loads((tmp_path / "run" / continued.RECORD).read_text())
    assert record["init_from"]["members"] == ["0001", "0002", "0000"]


def test_an_average_of_parameters_begins_anew_with_those_of_the_ancestor():
    ancestors = tuple({"w": np.full(2, float(n))} for n in range(3))
    begin = continued.Continued(ancestors).warm_start
    state = {"params": {"w": np.ones(2)}, "step": 0}
    for given in (state, state | {"average": {"w": np.ones(2)}}):
        found = begin(Member(5), {"state": given, "best": {"w": np.ones(2)}, "step": 0})
        assert found["state"].keys() == given.keys() and found["state"]["step"] == 0
        expected = ancestors[5 % 3]
        assert found["best"] is found["state"]["params"] is expected
        assert found["state"].get("average", expected) is expected


def test_training_on_goes_on_after_a_kill_with_what_it_was_begun_with(
    setting, ancestor, tmp_path, monkeypatch
):
    """Although another taking back and a better member have come in between."""
    folder, config = setting
    corrections = add_corrections(tmp_path / "corrections", folder / "unseen.tif")
    config = replace(config, init_from=str(ancestor), extra_labels=str(corrections))
    whole, plain, cut, fresh = (tmp_path / name for name in ("whole", "plain", "cut", "fresh"))
    train(config, whole)
    train(replace(config, extra_labels="", seeds=(0,)), plain)
    assert not equal(parameters(whole, 0), parameters(plain, 0))
    keep, calls = Sweep._keep, []

    def stop_at_the_second(self, endings):
        keep(self, endings)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "_keep", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(config, cut)
    add_corrections(corrections, folder / "unseen.tif", seed=1)
    mark = ancestor / "seeds" / "0000" / "DONE"
    mark.write_text(mark.read_text().replace("0.1", "0.9"))
    train(config, cut)
    for seed in (0, 1):
        for name in ("last", "best"):
            assert equal(parameters(whole, seed, name), parameters(cut, seed, name))
    train(config, fresh)
    assert not equal(parameters(fresh, 0), parameters(whole, 0))


def test_the_experiment_trains_on_from_a_run_with_corrections(setting, tmp_path):
    """Whole, once: at a learning rate of zero the best member's parameters come out again."""
    folder, config = setting
    _, task = segment.build(config, 2)
    params = [task.init_params(jax.random.key(seed)) for seed in (5, 6)]
    run = publish(tmp_path / "earlier", config, (0.2, 0.4), params)
    corrections = add_corrections(tmp_path / "corrections", folder / "unseen.tif")
    config = replace(config, init_from=str(run), extra_labels=str(corrections), seeds=(0,))
    summary = segment.run(replace(config, learning_rate=0.0, steps=2), tmp_path / "run")
    assert summary.failed == 0
    found = restore_tree(tmp_path / "run" / "seeds" / "0000" / "last", params[0])
    assert equal(jax.tree.leaves(found), jax.tree.leaves(params[1]))
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["init_from"] == str(run) and written["extra_labels"] == str(corrections)
    with pytest.raises(ValueError, match=r"init_from was .*earlier.* and is"):
        segment.run(replace(config, init_from="", learning_rate=0.0, steps=2), tmp_path / "run")


def test_corrected_voxels_weigh_what_their_class_weighs_in_training(setting):
    parts = load_parts(setting[1])
    weights = error_weights_of(parts, "balance")
    found = continued.class_weights(parts, weights)
    expected = [weights[parts.train.labels == label].mean() for label in (0, 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def ready(setting, tmp_path, **options):
    corrections = add_corrections(
        tmp_path / "corrections", options.pop("volume", setting[0] / "unseen.tif"), **options
    )
    return replace(setting[1], extra_labels=str(corrections))


BAD = {
    "another width": (
        lambda s, a, t: replace(s[1], init_from=str(a), width=4),
        r"--init_from=.* trained another network: width was 2 and is 4",
    ),
    "another network": (
        lambda s, a, t: replace(s[1], init_from=str(a), network="hybrid"),
        r"network was unet and is hybrid",
    ),
    "other classes": (
        lambda s, a, t: replace(s[1], init_from=str(a), class_names=("outside", "nucleus")),
        r"classes were outside, inside and are outside, nucleus",
    ),
    "no run": (
        lambda s, a, t: replace(s[1], init_from=str(t / "nothing")),
        r"--init_from=.*nothing: .*config\.json",
    ),
    "no corrections": (
        lambda s, a, t: replace(s[1], extra_labels=str(t / "nothing")),
        r"nothing/corrections\.json: no such file",
    ),
    "corrections of other classes": (
        lambda s, a, t: ready(s, t, names=("outside", "nucleus")),
        r"--extra_labels=.*its classes are outside, nucleus; expected outside, inside",
    ),
    "a volume that has moved": (
        lambda s, a, t: ready(s, t, volume=t / "gone.tif"),
        r"gone\.tif: no such file",
    ),
    "a volume of another shape": (
        lambda s, a, t: ready(s, t, shape=(4, 40, 45)),
        r"unseen\.tif: shape \(4, 40, 44\); expected \(4, 40, 45\)",
    ),
    "a share in thousandths": (
        lambda s, a, t: replace(ready(s, t), extra_share=0.005),
        r"--extra_share=0\.005; expected whole hundredths from 0\.01 to 1",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_trained_on_is_named_before_anything_is(what, setting, ancestor, tmp_path):
    make, message = BAD[what]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        segment.run(make(setting, ancestor, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_members_of_another_structure_are_refused(setting, ancestor, tmp_path):
    """The record of the network agrees, its parameters don't."""
    with pytest.raises(ValueError, match=r"--init_from=.*holds other arrays than expected"):
        segment.run(replace(setting[1], init_from=str(ancestor)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_none_of_whose_members_ended_well_is_refused(setting, ancestor, tmp_path):
    run = tmp_path / "failed"
    (run / "seeds" / "0000").mkdir(parents=True)
    (run / "config.json").write_text((ancestor / "config.json").read_text())
    with pytest.raises(ValueError, match=r"--init_from=.*: no member is done"):
        segment.run(replace(setting[1], init_from=str(run)), tmp_path / "run")


def test_corrections_without_any_block_and_voxels_of_another_size(setting, ancestor, tmp_path):
    folder, config = setting
    empty = tmp_path / "empty"
    start_corrections(empty, Subject(str(folder / "unseen.tif"), None, UNSEEN, VOXEL, NAMES))
    with pytest.raises(ValueError, match="nothing was taken back yet"):
        segment.run(replace(config, extra_labels=str(empty)), tmp_path / "run")
    corrections = add_corrections(tmp_path / "corrections", folder / "unseen.tif")
    fields = json.loads((corrections / "corrections.json").read_text())
    fields["voxel_nm"] = [50.0, 8.0, 8.0]
    (corrections / "corrections.json").write_text(json.dumps(fields))
    with pytest.warns(UserWarning, match=r"voxels of \(50\.0, 8\.0, 8\.0\) nm"):
        read(replace(config, extra_labels=str(corrections)), load_parts(config), tmp_path)
