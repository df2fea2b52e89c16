"""Rendering from the command's side: what it leaves, and what it says to bad input."""

import importlib.util
import json
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import tifffile

pytest.importorskip("skimage", reason="surfaces need scikit-image")

from densejax.data import ome_zarr
from densejax.plots.scenes import why_not
from densejax.segmentation.rendering import subjects
from densejax.training.folders import frames_of
from experiments import render, segment

needs_vtk = pytest.mark.skipif(bool(why_not()), reason=why_not())
SMALL = render.Config(triangles=40_000, sections=4, frames=3)


@pytest.fixture(scope="module")
def prediction(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prediction")
    subjects.write_demo(folder, shape=(12, 96, 96))
    return folder


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@needs_vtk
def test_a_prediction_is_drawn_whole(prediction, capsys):
    pytest.importorskip("trimesh", reason="mesh files need trimesh")
    config = replace(SMALL, turntable=True, meshes=("glb", "ply"), classes=("1", "2", "6"))
    rendered = render.run(config, prediction)
    said = capsys.readouterr().out
    assert rendered.failed == 0 and all(path.stat().st_size for path in rendered.files)
    found = names_in(prediction / "renders")
    expected = {f"orthoslices_{layer}.png" for layer in ("labels", "entropy", "disagreement")}
    expected |= {"sections.png", "all.png", "all.glb", "config.json", "provenance.jsonl"}
    expected |= {f"surfaces_{name}.png" for name in ("cell", "dense_granule_core")}
    expected |= {f"{name}.ply" for name in ("cell", "mitochondrion")}
    assert expected <= found
    assert {"turntable.mp4", "turntable.gif"} & found
    assert re.search(r"surfaces +level \d, voxels 50 x \d+ x \d+ nm", said)
    assert re.search(r"mitochondrion +[\d,]+ +[\d.]+ +[\d.]+ +-?\d+", said)


def test_classes_are_chosen_by_name_or_number_and_unknown_ones_refused(prediction, capsys):
    folder = prediction / "renders"
    for path in [*folder.glob("*.png"), *folder.glob("*.ply")]:
        path.unlink()
    meshes = ("ply",) if importlib.util.find_spec("trimesh") else ()
    render.run(replace(SMALL, classes=("Mitochondrion", "3"), meshes=meshes), prediction)
    said = capsys.readouterr().out
    measured = re.findall(r"^(\w[\w ]*?) {2,}[\d,]+ +\S+ +\S+ +-?[\d,]+$", said, re.M)
    assert measured == ["mitochondrion", "alpha granule"]
    drawn = {name for name in names_in(folder) if name.startswith("surfaces_")}
    expected = {"surfaces_mitochondrion.png", "surfaces_alpha_granule.png"}
    assert drawn == (set() if why_not() else expected)
    with pytest.raises(ValueError, match=r"no class 'nucleus'; there are 0 background, 1 cell"):
        render.run(replace(SMALL, classes=("nucleus",)), prediction)
    with pytest.raises(ValueError, match="no class '7'"):
        render.run(replace(SMALL, classes=("7",)), prediction)


def write_files(folder, labels):
    image = np.random.default_rng(0).integers(0, 255, labels.shape, np.uint8)
    for name, array in (("image", image), ("labels", labels)):
        tifffile.imwrite(folder / f"{name}.tif", array, photometric="minisblack")
    return replace(
        SMALL,
        labels=str(folder / "labels.tif"),
        image=str(folder / "image.tif"),
        voxel_nm=(50.0, 10.0, 10.0),
        class_names=("outside", "inside", "nothing"),
    )


def box_labels():
    labels = np.zeros((8, 40, 44), np.uint8)
    labels[2:6, 10:30, 12:34] = 1
    labels[:, :4] = 255
    return labels


def test_files_of_any_format_are_drawn_and_an_empty_class_left_out(tmp_path, capsys):
    config = write_files(tmp_path, box_labels())
    out = tmp_path / "out"
    render.run(config, out)
    said = capsys.readouterr().out
    assert re.search(r"nothing +no voxel at this level: left out", said)
    found = names_in(out / "renders")
    assert ("surfaces_inside.png" in found) == (not why_not())
    assert "surfaces_nothing.png" not in found
    # A box: volume and Euler number as geometry says (a few percent of its edges are rounded).
    row = next(line for line in said.splitlines() if line.startswith("inside"))
    _, _, _, volume, euler = row.split()
    assert euler == "2"
    assert float(volume) == pytest.approx(4 * 20 * 22 * 50 * 10 * 10 / 1e9, rel=0.15)


def test_nothing_but_empty_classes_is_said(tmp_path, capsys):
    config = write_files(tmp_path, np.zeros((8, 40, 44), np.uint8))
    rendered = render.run(config, tmp_path / "out")
    assert "nothing to draw in three dimensions" in capsys.readouterr().out
    assert rendered.failed == 0


def test_a_missing_image_is_said_and_a_named_one_refused(prediction, tmp_path, capsys):
    about = json.loads((prediction / "prediction.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("labels", "entropy"):
        (moved / f"{name}.zarr").symlink_to(prediction / f"{name}.zarr")
    lost = about | {"volume": str(tmp_path / "gone.tif")}
    (moved / "prediction.json").write_text(json.dumps(lost))
    render.run(replace(SMALL, surfaces=False), moved)
    said = capsys.readouterr().out
    assert re.search(r"without the image:.*gone\.tif.*--volume", said)
    assert "orthoslices_labels.png" in names_in(moved / "renders")
    with pytest.raises(FileNotFoundError, match=r"other\.tif"):
        render.run(replace(SMALL, volume=str(tmp_path / "other.tif")), moved)
    found = subjects.open_prediction(moved, volume=about["volume"])
    assert found.image is not None


def test_a_part_of_a_volume_is_shown_over_its_part_of_the_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (10, 30, 32), np.uint8)
    tifffile.imwrite(tmp_path / "image.tif", image, photometric="minisblack")
    path = tmp_path / "labels.zarr"
    ome_zarr.create_image(
        path,
        shape=(4, 20, 24),
        dtype=np.uint8,
        chunks=(4, 8, 8),
        voxel_nm=(50, 10, 10),
        kind="labels",
        offset=(3, 5, 6),
        class_names=("a", "b"),
    )
    about = {"volume": str(tmp_path / "image.tif"), "dataset": None, "voxel_nm": [50, 10, 10]}
    about |= {"offset": [3, 5, 6], "class_names": ["a", "b"], "shape": [4, 20, 24]}
    (tmp_path / "prediction.json").write_text(json.dumps(about))
    subject = subjects.open_prediction(tmp_path)
    np.testing.assert_array_equal(subject.image.array[...], image[3:7, 5:25, 6:30])
    assert subject.labels[0].origin_nm == subject.image.origin_nm == (150, 50, 60)
    np.testing.assert_allclose(subject.corners_nm, [[125, 45, 55], [325, 245, 295]])
    about["offset"] = [7, 5, 6]
    (tmp_path / "prediction.json").write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match=r"shape \(10, 30, 32\); expected the labels' \(4, 20, 24\)"
    ):
        subjects.open_prediction(tmp_path, volume=about["volume"])


BAD = {
    "no prediction": (lambda f: (SMALL, f), r"prediction\.json.*experiments\.predict"),
    "labels without a voxel size": (
        lambda f: (replace(write_files(f, box_labels()), voxel_nm=()), f / "out"),
        "--voxel_nm",
    ),
    "labels that are not there": (
        lambda f: (replace(SMALL, labels=str(f / "no.tif")), f / "out"),
        r"no\.tif",
    ),
    "an image of another shape": (
        lambda f: (write_files(f, box_labels()), f / "out"),
        r"image\.tif: shape \(8, 40, 40\); expected \(8, 40, 44\) as .*labels",
    ),
    "a budget that is too small": (
        lambda f: (replace(write_files(f, box_labels()), triangles=50, level=0), f / "out"),
        r"level 0 are [\d,]+ triangles and the budget is 50",
    ),
    "a level that is not there": (
        lambda f: (replace(write_files(f, box_labels()), level=9), f / "out"),
        r"level 9 is none of",
    ),
    "objects without instances": (
        lambda f: (replace(write_files(f, box_labels()), objects=(3,)), f / "out"),
        r"instances\.zarr",
    ),
    "a run that recorded nothing": (lambda f: (replace(SMALL, run=str(f)), f), "--record=N"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(what, tmp_path):
    make, message = BAD[what]
    config, workdir = make(tmp_path)
    if what == "an image of another shape":
        tifffile.imwrite(
            tmp_path / "image.tif", np.zeros((8, 40, 40), np.uint8), photometric="minisblack"
        )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        render.run(config, workdir)


def test_float_labels_are_refused(tmp_path):
    config = write_files(tmp_path, box_labels())
    tifffile.imwrite(config.labels, np.zeros((8, 40, 44), np.float32), photometric="minisblack")
    with pytest.raises(ValueError, match=r"labels are float32; expected integers"):
        render.run(config, tmp_path / "out")


def test_without_the_extra_surfaces_are_measured_but_not_drawn(prediction, monkeypatch, capsys):
    why = "the package pyvista is not installed (pip install 'densejax[render]')"
    monkeypatch.setattr(render, "why_not", lambda: why)
    folder = prediction / "renders"
    for path in folder.glob("surfaces_*.png"):
        path.unlink()
    render.run(replace(SMALL, classes=("2",)), prediction)
    said = capsys.readouterr().out
    assert re.search(r"mitochondrion +[\d,]+ +[\d.]+ +[\d.]+ +-?\d+", said)
    assert f"surfaces are not drawn: {why}" in said
    assert "orthoslices_labels.png" in names_in(folder)
    assert not [name for name in names_in(folder) if name.startswith("surfaces_")]
    with pytest.raises(ValueError, match=r"--renderer=vtk.*densejax\[render\]"):
        render.run(replace(SMALL, renderer="vtk", classes=("2",)), prediction)


RUN = segment.Config(
    recipe="published",
    baseline=False,
    world=(12, 96, 96),
    network="unet",
    width=2,
    window=(3, 32, 32),
    spacing=(2, 16, 16),
    steps=4,
    log_every=2,
    evaluate_every=2,
    checkpoint_every=2,
    evaluation_windows=3,
    seeds=(0, 1),
)


def parameter_bytes(folder):
    kept = ("best", "last", "metrics.jsonl", "DONE")
    found = {}
    for path in sorted(folder.rglob("*")):
        top = path.relative_to(folder).parts[1:2]
        if path.is_file() and top and top[0] in ("metrics.jsonl", "DONE"):
            found[path.relative_to(folder)] = path.read_bytes()
    assert kept and found
    return found


@pytest.mark.slow
def test_a_recorded_run_trains_the_same_and_becomes_two_films(tmp_path, monkeypatch):
    plain, filmed = tmp_path / "plain", tmp_path / "filmed"
    segment.run(RUN, plain)
    summary = segment.run(replace(RUN, record=2), filmed)
    assert parameter_bytes(plain / "seeds") == parameter_bytes(filmed / "seeds")
    import jax

    from densejax.training.checkpoint import restore_tree

    _, task = segment.build(RUN, 7)
    template = jax.eval_shape(task.init_params, jax.random.key(0))
    for seed in ("0000", "0001"):
        for name in ("best", "last"):
            trees = [restore_tree(f / "seeds" / seed / name, template) for f in (plain, filmed)]
            jax.tree.map(np.testing.assert_array_equal, *trees)
    frames = frames_of(filmed / "seeds" / "0001")
    assert [step for step, _ in frames] == [0, 2, 4]
    with np.load(frames[-1][1]) as held, np.load(filmed / "recording.npz") as section:
        shares, z = held["probabilities"], int(section["section"])
        assert shares.dtype == np.uint8 and shares.shape == (96, 96, 7)
        assert abs(shares.sum(-1, dtype=int) - 255).max() <= 4
        volume = summary.evaluation.volume
        np.testing.assert_array_equal(section["image"], volume.images[z])
        np.testing.assert_array_equal(section["labels"], volume.labels[z])
    films = render.run(replace(SMALL, run=str(filmed), seed="1"), tmp_path / "films").files
    assert {path.stem for path in films} == {"0001_probabilities", "0001_segmentation"}
    with pytest.raises(ValueError, match=r"no frames of member '7'; there are those of 0000, 0001"):
        render.run(replace(SMALL, run=str(filmed), seed="7"), tmp_path / "films")


def test_image_and_labels_lie_over_one_another_where_their_files_say(tmp_path):
    image = np.random.default_rng(1).integers(0, 255, (8, 40, 44), np.uint8)
    labels = (image[2:6, 5:25, 4:40] > 100).astype(np.uint8)
    for name, array, first in (("image", image, (1, 0, 3)), ("labels", labels, (3, 5, 7))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["a"] = array
            file["a"].attrs["resolution"] = (50.0, 10.0, 10.0)
            file["a"].attrs["offset"] = np.multiply(first, (50.0, 10.0, 10.0))
    place = {name: str(tmp_path / f"{name}.h5") for name in ("image", "labels")}
    names = {"voxel_nm": (), "class_names": ("outside", "inside")}
    found = subjects.open_files(**place, **names)
    assert found.image is not None
    np.testing.assert_array_equal(found.image.array[:, :, :], image[2:6, 5:25, 4:40])
    np.testing.assert_array_equal(found.labels[0].array[:, :, :], labels)
    with pytest.raises(ValueError, match=r"holds \(4, 20, 36\) voxels .* labels' \(8, 40, 44\)"):
        subjects.open_files(place["image"], image=place["labels"], **names)
