"""What is read from a run's folder: members by score, classes, voxels, grey levels, settings."""

import json
from dataclasses import dataclass, field, replace

import jax
import numpy as np
import pytest

from densejax.cli import option, save_config
from densejax.data.synthetic import CLASS_NAMES
from densejax.inference.whole_volume import checksum
from densejax.segmentation.runs import open_run, own_voxel, read_config, save_learned_from
from densejax.segmentation.sources import Parts, synthetic_volume
from densejax.training.checkpoint import save_tree


@dataclass(frozen=True)
class Inner:
    sigma: float = option(1.0, "inner")


@dataclass(frozen=True)
class Config:
    data: str = option("synthetic", "data")
    image: str = option("", "image")
    class_names: tuple[str, ...] = option((), "names")
    voxel_nm: tuple[float, ...] = option((), "voxels")
    inner: Inner = field(default_factory=Inner)
    later: int = option(7, "a field of a later version")


def make_run(folder, *, scores=(0.2, 0.5, None, 0.4), config=None):
    save_config(config or Config(), folder / "config.json")
    for seed, score in enumerate(scores):
        place = folder / "seeds" / f"{seed:04d}"
        place.mkdir(parents=True)
        save_tree(place / "best", {"w": np.full(3, seed, np.float32)})
        marker = {"step": 9, "best_score": score, "best_step": 4, "reason": "all steps made"}
        (place / "DONE").write_text(json.dumps(marker))
    failed = folder / "seeds" / "0009"
    failed.mkdir(parents=True)
    (failed / "FAILED").write_text(json.dumps({"best_score": None}))
    return folder


def test_the_voxels_of_a_volume_that_it_was_trained_on_are_known(tmp_path):
    names = ("a", "b")
    config = Config(data="files", image=f"{tmp_path}/em.h5::raw", class_names=names)
    folder = make_run(tmp_path / "run", config=config)
    learned = {"class_names": names, "voxel_nm": [50, 4, 4]}
    (folder / "learned_from.json").write_text(json.dumps(learned))
    run = open_run(folder)
    for volume in (f"{tmp_path}/em.h5::raw", f"{tmp_path}/run/../em.h5"):
        known = own_voxel(folder, volume, run)
        assert known == {"voxel_nm": None, "otherwise_nm": (50, 4, 4)}
    assert own_voxel(folder, f"{tmp_path}/other.h5", run) == {}
    told = replace(config, image=str(tmp_path), voxel_nm=(50, 4, 4))
    folder = make_run(tmp_path / "told", config=told)
    assert own_voxel(folder, f"{tmp_path}/3.tif", open_run(folder))["voxel_nm"] == [50, 4, 4]


def test_members_come_by_score_and_their_best_parameters_are_stacked(tmp_path):
    run = open_run(make_run(tmp_path))
    # Member 0002 was never scored, as an older run leaves it: its best are parameters as drawn.
    assert run.members == ("0001", "0003", "0000")
    assert run.scores == (0.5, 0.4, 0.2)
    params = run.load(run.members[:2], lambda key: {"w": jax.numpy.zeros(3)})
    np.testing.assert_array_equal(params["w"], [[1, 1, 1], [3, 3, 3]])
    with pytest.raises(ValueError, match=r"0001/best.*found float32\[3\], expected float32\[4\]"):
        run.load(run.members[:1], lambda key: {"w": jax.numpy.zeros(4)})


def test_what_it_has_learned_from_is_left_and_read(tmp_path):
    volume = synthetic_volume((6, 60, 64), seed=0, part="training")
    make_run(tmp_path)
    save_learned_from(tmp_path, Parts(volume, volume, volume, organelles=(2, 3)))
    run = open_run(tmp_path)
    assert run.class_names == CLASS_NAMES and run.organelles == (2, 3)
    assert run.voxel_nm == volume.voxel_nm
    expected = (volume.images.mean(dtype=np.float64), volume.images.std(dtype=np.float64))
    np.testing.assert_allclose(run.grey, expected, rtol=1e-12)


def test_an_older_run_is_read_from_its_configuration(tmp_path):
    run = open_run(make_run(tmp_path / "a"))
    assert run.class_names == CLASS_NAMES and run.grey is None
    assert run.organelles == (2, 3, 4, 5, 6) and run.voxel_nm == (50, 10, 10)
    own = Config(image="a.tif", class_names=("outside", "inside"))
    run = open_run(make_run(tmp_path / "b", config=own))
    assert run.class_names == ("outside", "inside") and run.voxel_nm is None


def test_settings_come_back_as_they_were(tmp_path):
    config = Config(voxel_nm=(50.0, 4.0, 4.0), inner=Inner(2.0))
    save_config(config, tmp_path / "config.json")
    assert read_config(Config, tmp_path) == config
    held = json.loads((tmp_path / "config.json").read_text())
    del held["later"]
    (tmp_path / "config.json").write_text(json.dumps(held))
    assert read_config(Config, tmp_path).later == 7
    (tmp_path / "config.json").write_text(json.dumps(held | {"strange": 1}))
    with pytest.raises(ValueError, match=r"\['strange'\] are no settings"):
        read_config(Config, tmp_path)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json.*segmentation run"):
        open_run(tmp_path)
    make_run(tmp_path, scores=())
    with pytest.raises(ValueError, match=r"no member is done \(1 failed\)"):
        open_run(tmp_path)
    make_run(tmp_path / "own", config=Config(data="files"))
    with pytest.raises(ValueError, match="no class names"):
        open_run(tmp_path / "own")


def test_parameters_are_told_apart():
    one = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    assert checksum(one) == checksum({name: leaf.copy() for name, leaf in one.items()})
    assert checksum(one) != checksum(one | {"b": np.zeros(2, np.float32)})
