"""Instances of a prediction's folder and of any label volume, end to end."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from densejax.data.ome_zarr import create_image, open_level, read_attributes
from densejax.data.volumes import open_volume
from densejax.segmentation.label_volumes import open_labelling
from densejax.segmentation.objects import segmentation as made
from experiments import instances

ROOT = Path(__file__).resolve().parents[2]
SHAPE, VOXEL, OFFSET = (12, 40, 44), (50.0, 10.0, 10.0), (3, 20, 0)
NAMES = ("background", "cell", "mitochondrion", "vessel")


def blobs(seed=0):
    """Cells with organelles in them, and a corner that was not predicted."""
    rng = np.random.default_rng(seed)
    grown = ndimage.uniform_filter(rng.random((3, *SHAPE)), (0, 3, 3, 3))
    labels = (grown[0] > 0.45).astype(np.uint8)
    labels[(labels == 1) & (grown[1] > 0.55)] = 2
    labels[(labels == 1) & (grown[2] > 0.55)] = 3
    labels[:6, :8, :8] = 255
    return labels


def write(path, array, **options):
    create_image(
        path,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(8, 16, 16),
        voxel_nm=VOXEL,
        offset=OFFSET,
        **options,
    )
    open_level(path, write=True).write(array).result()


def predicted(folder):
    """What ``experiments.predict`` leaves, as far as instances read it."""
    folder.mkdir()
    labels, rng = blobs(), np.random.default_rng(1)
    write(
        folder / "labels.zarr",
        labels,
        kind="labels",
        class_names=NAMES,
        attributes={"not_predicted": 255},
    )
    maps = {name: rng.integers(0, 256, SHAPE).astype(np.uint8) for name in made.MAPS}
    for name, array in maps.items():
        write(folder / f"{name}.zarr", array)
    chance = rng.integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    write(folder / "probabilities.zarr", chance, channel_names=NAMES)
    about = {"class_names": NAMES, "organelles": [2, 3], "offset": OFFSET, "not_predicted": 255}
    (folder / "prediction.json").write_text(json.dumps(about))
    return labels, maps, chance


def rows_of(folder):
    with (folder / "objects.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_prediction_becomes_objects_and_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(made, "LEAST_CHUNK", 1)
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (instances)")
    out = tmp_path / "out"
    labels, maps, chance = predicted(out)
    config = instances.Config(min_voxels=2, threads=1)
    result = instances.run(config, out)
    assert result.failed == 0
    ids = open_volume(out / "instances.zarr").read()
    rows = rows_of(out)
    assert sorted({row["class_name"] for row in rows}) == ["mitochondrion", "vessel"]
    for row in rows:
        inside = ids == int(row["id"])
        label = int(row["class"])
        assert (labels[inside] == label).all() and inside.sum() == int(row["voxels"]) >= 2
        for name, array in maps.items():
            assert float(row[f"mean_{name}"]) == pytest.approx(array[inside].mean() / 255)
        expected = chance[label][inside].mean() / 255
        assert float(row["mean_probability"]) == pytest.approx(expected)
        place = (np.argwhere(inside).mean(0) + OFFSET) * VOXEL
        found = [float(row[f"centre_{axis}_nm"]) for axis in "zyx"]
        np.testing.assert_allclose(found, place)
        assert float(row["volume_nm3"]) == inside.sum() * 5000
    assert len(rows) == ids.max() == parquet.read_table(out / "objects.parquet").num_rows
    metadata = read_attributes(out / "instances.zarr")
    assert len(metadata["multiscales"][0]["datasets"]) > 1
    assert metadata["densejax"]["connectivity"] == 26
    kept = {path.name for path in (out / "instances").iterdir()}
    assert kept == {"config.json", "provenance.jsonl", "summary.csv", "sizes.png"}
    table = capsys.readouterr().out
    assert "mitochondrion" in table and f"{len(rows)} of them kept" in table
    again = instances.run(config, out)
    assert "nothing is left to do" in capsys.readouterr().out
    assert [int(n) for n in again.summary["objects"]] == result.summary["objects"]
    with pytest.raises(ValueError, match="connectivity was 26 and is 6"):
        instances.run(replace(config, connectivity=6), out)


@pytest.mark.parametrize("stage", ["build_pyramid", "measure_objects", "write_csv"])
def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path, monkeypatch, stage):
    predicted(tmp_path / "whole")
    predicted(tmp_path / "stopped")
    config = instances.Config(threads=1)
    instances.run(config, tmp_path / "whole")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(made, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            instances.run(config, tmp_path / "stopped")
    assert not (tmp_path / "stopped/objects.csv").exists()
    instances.run(config, tmp_path / "stopped")
    for name in ("objects.csv", "instances/summary.csv"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()
    np.testing.assert_array_equal(
        open_volume(tmp_path / "stopped/instances.zarr").read(),
        open_volume(tmp_path / "whole/instances.zarr").read(),
    )


def test_a_tiff_of_labels_and_chosen_classes(tmp_path):
    labels = blobs()
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    config = instances.Config(
        labels=str(tmp_path / "labels.tif"),
        voxel_nm=VOXEL,
        unlabelled=255,
        classes=("3",),
        connectivity=6,
        exclude_border=True,
        version="0.4",
    )
    instances.run(config, tmp_path / "out")
    parts, count = ndimage.label(labels == 3)
    inner = [
        number
        for number, box in enumerate(ndimage.find_objects(parts), 1)
        if all(s.start > 0 and s.stop < n for s, n in zip(box, SHAPE, strict=True))
    ]
    ids = open_volume(tmp_path / "out/instances.zarr").read()
    assert 0 < len(inner) == ids.max() < count
    np.testing.assert_array_equal(ids > 0, np.isin(parts, inner))


def test_a_volume_without_objects(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "labels.tif", np.zeros(SHAPE, np.uint8), photometric="minisblack")
    config = instances.Config(labels=str(tmp_path / "labels.tif"), voxel_nm=VOXEL)
    instances.run(config, tmp_path / "out")
    assert rows_of(tmp_path / "out") == []
    assert "no objects" in capsys.readouterr().out
    instances.run(config, tmp_path / "out")


def test_the_middle_knows_where_it_lies(tmp_path):
    write(tmp_path / "labels.zarr", blobs(), kind="labels")
    whole = open_labelling(tmp_path / "labels.zarr", name="labels", offset=OFFSET)
    part = made.middle_of(whole, (4, 100, 10))
    assert part.array.shape == (4, 40, 10) and part.offset == (7, 20, 17)
    np.testing.assert_array_equal(part.array[...], blobs()[4:8, :, 17:27])
    with pytest.raises(ValueError, match="expected z,y,x from 1 on"):
        made.middle_of(whole, (4, 4))


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no labels\.zarr; expected a folder of"):
        instances.run(instances.Config(), tmp_path)
    predicted(tmp_path / "out")
    config = instances.Config(classes=("nucleus",))
    with pytest.raises(ValueError, match="class 'nucleus': expected some of 0 background, 1 cell"):
        instances.run(config, tmp_path / "out")
    with pytest.raises(ValueError, match="class '4': expected some of"):
        instances.run(replace(config, classes=("4",)), tmp_path / "out")
    (tmp_path / "out/blocks").mkdir()
    with pytest.raises(ValueError, match="a prediction that has not ended"):
        instances.run(instances.Config(), tmp_path / "out")
    assert not (tmp_path / "out/instances").exists()
    grey = np.zeros(SHAPE, np.float32)
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="minisblack")
    config = instances.Config(labels=str(tmp_path / "grey.tif"), voxel_nm=VOXEL)
    with pytest.raises(ValueError, match="float32; expected integers"):
        instances.run(config, tmp_path / "b")
    tifffile.imwrite(tmp_path / "l.tif", grey.astype(np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match="states no voxel size"):
        instances.run(instances.Config(labels=str(tmp_path / "l.tif")), tmp_path / "b")


def test_classes_by_name_number_and_default(tmp_path):
    predicted(tmp_path / "out")
    labelling = open_labelling(tmp_path / "out", name="labels")
    assert made.resolve_classes((), labelling) == (2, 3)
    assert made.resolve_classes(("vessel", "1"), labelling) == (1, 3)
    assert made.resolve_classes((), replace(labelling, prediction=None)) is None


def test_fast_dev_run_proves_the_set_up():
    command = [sys.executable, "-m", "experiments.instances", "--fast_dev_run", "--connectivity=6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "alpha granule" in done.stdout
    command[-1] = "--connectivity=7"
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "connectivity" in refused.stderr
