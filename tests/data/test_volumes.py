"""Each format, written by an independent writer, comes back as the same Z, Y, X array."""

import functools
import http.server
import json
import threading
import warnings

import h5py
import numpy as np
import pytest
import tensorstore as ts
import tifffile
from PIL import Image

from densejax.data import formats_chunked
from densejax.data.volumes import open_volume

VOXEL = (50.0, 10.0, 8.0)


def make(dtype=np.uint8, shape=(5, 6, 7)):
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def same(volume, expected):
    """Compare whole, lazily sliced, and by every kind of index."""
    assert volume.array.shape == expected.shape
    assert volume.array.dtype == expected.dtype.newbyteorder("=")
    for index in (
        np.s_[...],
        np.s_[1:3, 2:5, 3:],
        np.s_[2],
        np.s_[-1, ..., 1],
        np.s_[::2, :, ::3],
        np.s_[1:1],
    ):
        np.testing.assert_array_equal(volume.array[index], expected[index])
        assert volume.array[index].dtype.isnative
    np.testing.assert_array_equal(volume.read(), expected)
    np.testing.assert_array_equal(np.asarray(volume.array), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}])
def test_tiff_stack(tmp_path, dtype, options):
    data = make(dtype)
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    same(open_volume(tmp_path / "a.tif", voxel_nm=VOXEL), data)


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_tiff_pages_one_by_one_and_bigtiff(tmp_path, compression):
    data = make(np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as writer:
        for page in data:
            writer.write(page, compression=compression, contiguous=False)
    same(open_volume(tmp_path / "a.tif", voxel_nm=VOXEL), data)


def test_tiff_by_pillow(tmp_path):
    data = make()
    first, *rest = [Image.fromarray(page) for page in data]
    first.save(tmp_path / "a.tif", save_all=True, append_images=rest)
    same(open_volume(tmp_path / "a.tif", voxel_nm=VOXEL), data)


def test_one_page_is_a_volume_of_one_section(tmp_path):
    data = make()
    tifffile.imwrite(tmp_path / "a.tif", data[0])
    assert open_volume(tmp_path / "a.tif", voxel_nm=VOXEL).array.shape == (1, 6, 7)


def test_imagej_voxel_size(tmp_path):
    data = make(np.uint16)
    options = {"imagej": True, "resolution": (1 / 0.008, 1 / 0.01)}
    meta = {"spacing": 0.05, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.tif", data, metadata=meta, **options)
    volume = open_volume(tmp_path / "a.tif")
    same(volume, data)
    np.testing.assert_allclose(volume.voxel_nm, VOXEL, rtol=1e-5)


@pytest.mark.parametrize("short", [False, True])
def test_imagej_whole_stack_behind_one_page(tmp_path, short):
    """ImageJ lists one page and appends the rest of the voxels when a stack passes 4 GB."""
    data = make(np.uint16)
    about = f"ImageJ=1.47b\nimages={len(data)}\nslices={len(data)}\nunit=nm\nspacing=50\n"
    options = {"metadata": None, "description": about, "resolution": (1 / 8, 1 / 10)}
    tifffile.imwrite(tmp_path / "a.tif", data[0], byteorder=">", **options)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        end = tif.pages[0].dataoffsets[0] + data[0].nbytes
    whole = (tmp_path / "a.tif").read_bytes()[:end] + data[1:].astype(">u2").tobytes()
    (tmp_path / "a.tif").write_bytes(whole[:-1] if short else whole)
    if short:
        with pytest.raises(ValueError, match="cut short"):
            open_volume(tmp_path / "a.tif")
        return
    volume = open_volume(tmp_path / "a.tif")
    same(volume, data)
    np.testing.assert_allclose(volume.voxel_nm, VOXEL, rtol=1e-5)


def test_ome_tiff_voxel_size(tmp_path):
    data = make()
    meta = {"axes": "ZYX", "PhysicalSizeX": 0.008, "PhysicalSizeY": 10.0, "PhysicalSizeZ": 0.05}
    meta |= {"PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata=meta)
    volume = open_volume(tmp_path / "a.ome.tif")
    same(volume, data)
    np.testing.assert_allclose(volume.voxel_nm, VOXEL, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_folder_in_numeric_order(tmp_path, dtype, suffix):
    data = make(dtype, (12, 6, 7))
    for z, page in enumerate(data):
        if suffix == "png":
            Image.fromarray(page).save(tmp_path / f"s{z}.png")
        else:
            tifffile.imwrite(tmp_path / f"s{z}.tif", page)
    (tmp_path / "README.txt").write_text("other files do not matter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(open_volume(tmp_path, voxel_nm=VOXEL), data)


def test_folder_with_a_lost_section_warns(tmp_path):
    for z in (0, 1, 3):
        Image.fromarray(make()[0]).save(tmp_path / f"{z:03}.png")
    with pytest.warns(UserWarning, match="001.png to 003.png"):
        open_volume(tmp_path, voxel_nm=VOXEL)


def test_one_bit_png_is_read_as_0_and_255(tmp_path):
    mask = make()[0] > 100
    Image.fromarray(mask).save(tmp_path / "0.png")
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "1.png")
    found = open_volume(tmp_path, voxel_nm=VOXEL).read()
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(
    "attribute", [("resolution", VOXEL), ("element_size_um", (0.05, 0.01, 0.008))]
)
def test_hdf5(tmp_path, attribute):
    data = make(np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("volumes/raw", data=data, chunks=(2, 3, 4), compression="gzip")
        made.attrs[attribute[0]] = attribute[1]
        file["flat"] = data[0]
    volume = open_volume(tmp_path / "a.h5")
    same(volume, data)
    np.testing.assert_allclose(volume.voxel_nm, VOXEL)
    assert volume.path.endswith("a.h5::volumes/raw")


def test_hdf5_with_several_volumes_lists_them(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["labels/ids"] = make(), make(np.int64)
    with pytest.raises(ValueError, match=r"2 data sets.*a\.h5::NAME.*labels/ids.*raw"):
        open_volume(tmp_path / "a.h5", voxel_nm=VOXEL)
    with pytest.raises(ValueError, match=r"no data set 'x'.*raw"):
        open_volume(tmp_path / "a.h5", voxel_nm=VOXEL, dataset="x")
    same(open_volume(tmp_path / "a.h5", voxel_nm=VOXEL, dataset="/labels/ids"), make(np.int64))


def test_hdf5_that_is_not(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.h5: not a readable HDF5"):
        open_volume(tmp_path / "a.h5", voxel_nm=VOXEL)


def write_store(driver, path, data, **metadata):
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
    if metadata:
        spec["metadata"] = metadata
    store = ts.open(spec, create=True, dtype=data.dtype, shape=data.shape).result()
    store.write(data).result()


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("suffix", ["", ".zarr"])
def test_zarr(tmp_path, driver, suffix):
    data = make(np.uint16)
    place = tmp_path / f"a{suffix}"
    write_store(driver, place, data)
    same(open_volume(place, voxel_nm=VOXEL), data)
    assert open_volume(tmp_path, voxel_nm=VOXEL, dataset=place.name).array.shape == data.shape
    with pytest.raises(ValueError, match="--voxel_nm"):
        open_volume(place)


def test_zarr_attributes_and_empty_channel_axes(tmp_path):
    data = make()
    write_store("zarr", tmp_path / "a.zarr", data[None, None])
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps({"resolution": VOXEL}))
    volume = open_volume(tmp_path / "a.zarr")
    same(volume, data)
    assert volume.voxel_nm == VOXEL
    write_store("zarr", tmp_path / "b.zarr", np.stack([data, data]))
    with pytest.raises(ValueError, match=r"a single channel, that is size 1 in c.*::c=0"):
        open_volume(tmp_path / "b.zarr", voxel_nm=VOXEL)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_opens_level_0(tmp_path, version):
    data = make(np.uint16)
    driver = "zarr" if version == "0.4" else "zarr3"
    write_store(driver, tmp_path / "a.zarr" / "s0", data[None])
    write_store(driver, tmp_path / "a.zarr" / "s1", data[None, ::2, ::2, ::2])
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    levels = [
        {"path": f"s{i}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for i, scale in enumerate(([1, 0.025, 0.005, 0.004], [1, 0.05, 0.01, 0.008]))
    ]
    whole = [{"type": "scale", "scale": [1, 2, 2, 2]}]
    scales = [{"axes": axes, "datasets": levels, "coordinateTransformations": whole}]
    if version == "0.4":
        (tmp_path / "a.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
        (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps({"multiscales": scales}))
    else:
        group = {"zarr_format": 3, "node_type": "group"}
        group["attributes"] = {"ome": {"version": version, "multiscales": scales}}
        (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(group))
    volume = open_volume(tmp_path / "a.zarr")
    same(volume, data)
    np.testing.assert_allclose(volume.voxel_nm, VOXEL)
    same(open_volume(tmp_path / "a.zarr", dataset="s1", voxel_nm=VOXEL), data[::2, ::2, ::2])


def test_zarr_group_asks_for_an_array(tmp_path):
    write_store("zarr", tmp_path / "a.zarr" / "raw", make())
    (tmp_path / "a.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(ValueError, match=r"a\.zarr::ARRAY; it holds raw"):
        open_volume(tmp_path / "a.zarr", voxel_nm=VOXEL)


@pytest.mark.parametrize("style", ["pixelResolution", "resolution"])
def test_n5_is_turned_round(tmp_path, style):
    data = make(np.uint16)
    place = tmp_path / "a.n5" / "raw"
    write_store("n5", place, np.ascontiguousarray(data.T))
    found = json.loads((place / "attributes.json").read_text())
    if style == "resolution":
        found["resolution"] = VOXEL[::-1]
    else:
        found[style] = {"dimensions": [0.008, 0.01, 0.05], "unit": "um"}
    (place / "attributes.json").write_text(json.dumps(found))
    for volume in (open_volume(place), open_volume(tmp_path / "a.n5", dataset="raw")):
        same(volume, data)
        np.testing.assert_allclose(volume.voxel_nm, VOXEL)


def test_precomputed_is_turned_round(tmp_path):
    data = make(np.uint16)
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": str(tmp_path / "a")},
        "multiscale_metadata": {"type": "image", "data_type": "uint16", "num_channels": 1},
        "scale_metadata": {
            "size": data.shape[::-1],
            "encoding": "raw",
            "chunk_size": [4, 4, 4],
            "resolution": VOXEL[::-1],
            "voxel_offset": [3, 2, 1],
        },
    }
    ts.open(spec, create=True).result().write(np.ascontiguousarray(data.T)[..., None]).result()
    volume = open_volume(tmp_path / "a")
    same(volume, data)
    assert volume.voxel_nm == VOXEL


def test_remote_store(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data = make(np.uint16)
    write_store("zarr3", tmp_path / "a.zarr" / "raw", data)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/a.zarr"
    try:
        same(open_volume(f"{url}/raw", voxel_nm=VOXEL), data)
        same(open_volume(f"{url}/", voxel_nm=VOXEL, dataset="raw"), data)
        with pytest.raises(FileNotFoundError, match="nothing: no Zarr"):
            open_volume(f"{url}/nothing", voxel_nm=VOXEL)
    finally:
        server.shutdown()
        server.server_close()
    monkeypatch.setattr(formats_chunked, "REMOTE_WAIT_S", 0.3)
    with pytest.raises(ConnectionError, match=r"http://127.*a\.zarr/other: no metadata"):
        open_volume(f"{url}/other", voxel_nm=VOXEL)


def test_given_voxel_size_wins_and_a_disagreement_warns(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = make()
        file["raw"].attrs["resolution"] = VOXEL
    with pytest.warns(UserWarning, match="states voxels of"):
        assert open_volume(tmp_path / "a.h5", voxel_nm=(40, 10, 8)).voxel_nm == (40, 10, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_volume(tmp_path / "a.h5", voxel_nm=VOXEL)


def test_chunks_are_what_is_read_at_once(tmp_path):
    data = make()
    tifffile.imwrite(tmp_path / "plain.tif", data)
    tifffile.imwrite(tmp_path / "packed.tif", data, compression="zlib")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(2, 3, 7))
    ts.open(
        {
            "driver": "n5",
            "kvstore": (tmp_path / "a.n5").as_uri(),
            "metadata": {
                "dimensions": [7, 6, 5],
                "blockSize": [4, 3, 2],
                "dataType": "uint8",
                "compression": {"type": "raw"},
            },
        },
        create=True,
    ).result()[...] = data.T
    expected = {"plain.tif": (1, 1, 1), "packed.tif": (1, 6, 7), "a.h5": (2, 3, 7)}
    for name, chunks in (expected | {"a.n5": (2, 3, 4)}).items():
        assert open_volume(tmp_path / name, voxel_nm=VOXEL).array.chunks == chunks, name
