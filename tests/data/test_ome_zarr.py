"""OME-Zarr images: other programs' readers find what was written, and a kill leaves none or one."""

import itertools
import json
import logging
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from densejax.data import ngff
from densejax.data.ome_zarr import create_image, open_level, read_attributes
from densejax.data.volumes import open_volume

zarr = pytest.importorskip("zarr", reason="the zarr package is not installed (test extra)")

SHAPE, CHUNKS, VOXEL = (20, 33, 40), (8, 16, 16), (50.0, 10.0, 8.0)
NAMES = ("background", "cell", "mitochondrion")
LABELS = {"kind": "labels", "class_names": NAMES, "attributes": {"not_predicted": 255}}


def make(path: Path, **options):
    given = {"shape": SHAPE, "dtype": np.uint8, "chunks": CHUNKS, "voxel_nm": VOXEL} | options
    create_image(path, **given)
    return path


def values(shape=SHAPE, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 3, shape).astype(dtype)


@pytest.mark.parametrize(
    ("version", "shards", "compression", "dtype"),
    [
        (version, shards, compression, dtype)
        for version, shards, compression, dtype in itertools.product(
            ("0.4", "0.5"),
            (None, (16, 32, 32)),
            ("zstd", "blosc", "none"),
            (np.uint8, np.uint32, np.float32),
        )
        if not (shards and version == "0.4")
    ],
)
def test_readers_find_what_was_written(tmp_path, version, shards, compression, dtype):
    path = make(
        tmp_path / "a.zarr", version=version, shards=shards, compression=compression, dtype=dtype
    )
    written = values(dtype=dtype)
    open_level(path, write=True).write(written).result()
    volume = open_volume(path)
    assert volume.voxel_nm == VOXEL and volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.read(), written)
    np.testing.assert_array_equal(zarr.open_group(str(path), mode="r")["0"][...], written)


@pytest.mark.parametrize("version", ngff.VERSIONS)
def test_the_reader_of_ome_zarr_finds_values_names_and_colours(tmp_path, version, caplog):
    pytest.importorskip("ome_zarr", reason="the ome-zarr package is not installed (test extra)")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Label, Multiscales, Reader

    path = make(tmp_path / "labels.zarr", version=version, offset=(2, 4, 6), **LABELS)
    open_level(path, write=True).write(values()).result()
    caplog.set_level(logging.ERROR)
    (node,) = list(Reader(parse_url(str(path)))())
    assert not caplog.records
    assert {type(spec) for spec in node.specs} == {Label, Multiscales}
    np.testing.assert_array_equal(np.asarray(node.data[0]), values())
    assert node.metadata["coordinateTransformations"] == [
        [
            {"type": "scale", "scale": list(VOXEL)},
            {"type": "translation", "translation": [100.0, 40.0, 48.0]},
        ]
    ]
    named = {value: properties["name"] for value, properties in node.metadata["properties"].items()}
    assert named == dict(enumerate(NAMES)) | {255: "not predicted"}
    assert sorted(node.metadata["color"]) == [0, 1, 2, 255]


@pytest.mark.parametrize("version", ngff.VERSIONS)
@pytest.mark.parametrize("what", ["labels", "objects", "probabilities"])
def test_the_models_of_the_specification_accept_the_metadata(tmp_path, version, what):
    models = pytest.importorskip("ome_zarr_models", reason="ome-zarr-models is not installed")
    module = __import__(f"{models.__name__}.v{version.replace('.', '')}", fromlist=["Image"])
    options = {
        "labels": LABELS,
        "objects": {"kind": "labels", "dtype": np.uint32},
        "probabilities": {"shape": (3, *SHAPE), "channel_names": NAMES},
    }[what]
    path = make(tmp_path / "a.zarr", version=version, **options)
    model = module.Image if what == "probabilities" else module.ImageLabel
    found = model.from_zarr(zarr.open_group(str(path), mode="r"))
    multiscale = (found.attributes if version == "0.4" else found.attributes.ome).multiscales[0]
    assert [axis.name for axis in multiscale.axes] == list("czyx")[what != "probabilities" :]


@pytest.mark.parametrize("version", ngff.VERSIONS)
def test_channels_come_first_and_attributes_come_back(tmp_path, version):
    path = make(
        tmp_path / "p.zarr",
        version=version,
        shape=(3, *SHAPE),
        channel_names=NAMES,
        attributes={"value": "1/255"},
    )
    store = open_level(path, write=True)
    assert store.shape == (3, *SHAPE) and store.chunk_layout.read_chunk.shape == (1, *CHUNKS)
    found = read_attributes(path)
    assert found["densejax"] == {"value": "1/255", "channel_names": list(NAMES)}
    assert [channel["label"] for channel in found["omero"]["channels"]] == list(NAMES)
    assert found["version"] == version


def test_what_is_not_written_is_not_predicted(tmp_path):
    path = make(tmp_path / "labels.zarr", **LABELS)
    open_level(path, write=True)[:8, :16].write(np.uint8(1)).result()
    expected = np.full(SHAPE, 255)
    expected[:8, :16] = 1
    np.testing.assert_array_equal(open_volume(path).read(), expected)


@pytest.mark.parametrize("version", ngff.VERSIONS)
def test_the_same_image_is_accepted_and_another_refused(tmp_path, version):
    path = make(tmp_path / "labels.zarr", version=version, **LABELS)
    open_level(path, write=True).write(values()).result()
    make(path, version=version, **LABELS)
    np.testing.assert_array_equal(open_volume(path).read(), values())
    for changed, named in (
        ({"chunks": (4, 16, 16)}, "level 0.chunk"),
        ({"voxel_nm": (40, 10, 8)}, "multiscales was"),
        ({"class_names": ("a", "b", "c")}, "densejax.class_names was"),
    ):
        with pytest.raises(FileExistsError, match=named):
            make(path, **{"version": version} | LABELS | changed)
    with pytest.raises(FileExistsError, match="no image of ours"):
        make(tmp_path, **LABELS)


def _make_labels(path: Path) -> None:
    make(path, **LABELS)


def test_several_processes_make_one_image(tmp_path):
    path = tmp_path / "labels.zarr"
    # Not by fork: the parent runs tensorstore's threads.
    workers = [
        multiprocessing.get_context("spawn").Process(target=_make_labels, args=(path,))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.zarr"]


def test_a_kill_before_the_rename_leaves_no_image(tmp_path, monkeypatch):
    path = tmp_path / "labels.zarr"

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            make(path, **LABELS)
    assert not path.exists()
    make(path, **LABELS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.zarr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3, *SHAPE)}, "channel_names None"),
        ({"shape": (3, *SHAPE), "channel_names": NAMES[:2]}, "c names"),
        ({"shape": (0, 3, 4)}, "shape .* from 1 on"),
        ({"chunks": (8, 8)}, "chunks .*expected 3 or 3"),
        ({"chunks": (8.5, 8, 8)}, "whole numbers"),
        ({"voxel_nm": (50, 10)}, "three positive nm"),
        ({"version": "0.3"}, "NGFF version '0.3'"),
        ({"dtype": np.complex64}, "complex64 is not supported"),
        ({"version": "0.4", "shards": (16, 32, 32)}, "need Zarr 3"),
        ({"shards": (12, 32, 32)}, "whole multiples of the chunks"),
        ({"class_names": NAMES, "colours": ["#000000"]}, "1 colours"),
        (LABELS | {"colours": ["red", "blue", "green"]}, "expected #RRGGBB"),
    ],
)
def test_bad_images_are_refused_and_nothing_is_made(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "a.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_what_is_no_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.zarr: no OME-Zarr image"):
        open_level(tmp_path / "a.zarr")
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_attributes(tmp_path)
    (tmp_path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    with pytest.raises(ValueError, match="no multiscales"):
        read_attributes(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no level 3; expected 0\.\.0"):
        open_level(make(tmp_path / "b.zarr"), level=3)
    with pytest.raises(ValueError, match="expected a folder on a local disk"):
        open_level("gs://bucket/a.zarr")


def test_given_colours_are_kept(tmp_path):
    path = make(tmp_path / "a.zarr", **LABELS, colours=["#000000", "#0072B2", "#E69F00"])
    colours = read_attributes(path)["image-label"]["colors"]
    assert colours[1] == {"label-value": 1, "rgba": [0, 0x72, 0xB2, 255]}
