"""Axes, units, positions and levels, written by each format's own library, come back as z, y, x."""

import gzip
import importlib
import itertools
import json
import os
import shutil
import tracemalloc
import uuid
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorstore as ts
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densejax.data.geometry import Geometry, Opened, from_attributes, present, unit_nm
from densejax.data.levels import open_levels
from densejax.data.volumes import open_pair, open_volume

zarr = pytest.importorskip("zarr", reason="the zarr package is not installed (test extra)")

VOXEL = (50.0, 6.0, 4.0)
SHAPE = (5, 6, 7)
ORDERS = ["".join(order) for order in itertools.permutations("zyx")]
UNITS = {"nm": 1.0, "nanometer": 1.0, "um": 1e3, "micrometer": 1e3, "µm": 1e3, "angstrom": 0.1}
FORMATS = Path(os.environ.get("DENSEJAX_DATA", "../shared/data")) / "formats"


@pytest.fixture
def data():
    return np.random.default_rng(0).integers(1, 250, SHAPE, np.uint8)


def stored(data, order):
    """An array with its axes in another order, others of length 1, and its voxels and position."""
    kept = "".join(a for a in order if a in "zyx")
    turned = data.transpose(["zyx".index(a) for a in kept])
    full = turned.reshape([turned.shape[kept.index(a)] if a in "zyx" else 1 for a in order])
    return np.ascontiguousarray(full)


def along(values, order, other=1.0):
    return [values["zyx".index(a)] if a in "zyx" else other for a in order]


def tags(order, resolution=None):
    held = resolution or [0] * len(order)
    return json.dumps(
        {
            "axes": [
                {"key": a, "typeFlags": 2, "resolution": r}
                for a, r in zip(order, held, strict=True)
            ]
        }
    )


def check(volume, data, voxel_nm=VOXEL, offset=None):
    np.testing.assert_array_equal(volume.read(), data)
    np.testing.assert_array_equal(volume.array[1:3, 2, ::2], data[1:3, 2, ::2])
    np.testing.assert_allclose(volume.voxel_nm, voxel_nm, rtol=1e-6)
    assert volume.offset == offset


def ngff(path, arrays, datasets, *, axes="zyx", unit="nanometer", version="0.4", **more):
    """An OME-Zarr group; ``datasets`` are the transformations of each level."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version < "0.5" else 3)
    for inner, array in arrays.items():
        made = group.create_array(inner, shape=array.shape, dtype=array.dtype, chunks=array.shape)
        made[...] = array
    named = [
        {"name": a, "type": "channel"} if a == "c" else {"name": a, "type": "space", "unit": unit}
        for a in axes
    ]
    scale = {"datasets": datasets, **more}
    if version < "0.6":
        scale["axes"] = named
    if version < "0.5":
        group.attrs["multiscales"] = [{"version": version, **scale}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [scale]}
    return path


def moved(path, scale, translation=None):
    steps = [{"type": "scale", "scale": list(scale)}]
    if translation is not None:
        steps.append({"type": "translation", "translation": list(translation)})
    return {"path": path, "coordinateTransformations": steps}


# One place turns axes round, for all formats.


@settings(max_examples=60, deadline=None)
@given(order=st.permutations("zyxct"), shape=st.tuples(*[st.integers(1, 4)] * 3), pick=st.data())
def test_any_order_is_shown_as_z_y_x(order, shape, pick):
    data = np.arange(np.prod(shape)).reshape(shape)
    full = stored(data, order)
    opened = Opened("a", full.shape, full.dtype, lambda box: full[box], Geometry(tuple(order)))
    array = present(opened)
    spans = [sorted(pick.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = tuple(slice(*span) for span in spans)
    np.testing.assert_array_equal(array[box], data[box])


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations("zyxc"),
    unit=st.sampled_from(sorted(UNITS)),
    start=st.tuples(*[st.integers(-9, 9)] * 3),
)
def test_attributes_mean_the_same_in_any_order_and_unit(order, unit, start):
    shape = stored(np.zeros(SHAPE), order).shape
    held = {
        "axis_names": list(order),
        "units": ["" if a == "c" else unit for a in order],
        "resolution": along([v / UNITS[unit] for v in VOXEL], order),
        "offset": along([s * v / UNITS[unit] for s, v in zip(start, VOXEL, strict=True)], order, 0),
    }
    found = from_attributes(held, shape, name="a")
    assert found.axes == tuple(order) and not found.problem
    np.testing.assert_allclose(found.voxel_nm, VOXEL)
    np.testing.assert_allclose(found.offset_nm, np.multiply(start, VOXEL), atol=1e-9)


def test_units():
    assert [
        unit_nm(u) for u in ("Nanometers", "inch", "inches", "\\u00B5m", b"mm", "pixel", "")
    ] == [
        1.0,
        2.54e7,
        2.54e7,
        1e3,
        1e6,
        None,
        None,
    ]


# Order of axes and units, by format.


@pytest.mark.parametrize("order", [*ORDERS, "tzyxc", "czyx", "yxcz"])
def test_zarr_axis_names(tmp_path, data, order):
    for key, form, size in (
        ("axis_names", 2, "voxel_size"),
        ("_ARRAY_DIMENSIONS", 2, "resolution"),
        ("dimension_names", 3, "resolution"),
    ):
        array = stored(data, order)
        names = {"dimension_names": list(order)} if form == 3 else {}
        path = tmp_path / f"{key}.zarr"
        made = zarr.create_array(path, shape=array.shape, dtype="u1", zarr_format=form, **names)
        made[...] = array
        held = {size: along([v / 1e3 for v in VOXEL], order), "units": ["um"] * len(order)}
        held["offset"] = along([0.1, 0.012, -0.004], order, 0)
        made.attrs.update(held if form == 3 else held | {key: list(order)})
        check(open_volume(path), data, offset=(2, 2, -1))


@pytest.mark.parametrize("order", [*ORDERS, "tzyxc", "zyxc"])
def test_hdf5_axes(tmp_path, data, order):
    array = stored(data, order)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tags"] = array
        file["tags"].attrs["axistags"] = tags(order)
        file["tags"].attrs["element_size_um"] = along([v / 1e3 for v in VOXEL], order)
        file["labels"] = array
        for dim, letter in zip(file["labels"].dims, order, strict=True):
            dim.label = letter
        file["labels"].attrs.update({"resolution": along(VOXEL, order), "units": "nm"})
        file["sized"] = array
        sizes = along([v / 1e3 for v in VOXEL], order)
        file["sized"].attrs["axistags"] = tags(order, sizes)
        file["sized"].attrs["axis_units"] = json.dumps(dict.fromkeys(order, "um"))
        for letter in order:
            file[letter] = np.zeros(array.shape[order.index(letter)])
            file[letter].make_scale()
        file["scaled"] = array
        for dim, letter in zip(file["scaled"].dims, order, strict=True):
            dim.attach_scale(file[letter])
        file["scaled"].attrs["resolution"] = along(VOXEL, order)
    for inner in ("tags", "labels", "sized", "scaled"):
        check(open_volume(f"{tmp_path / 'a.h5'}::{inner}"), data)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["zyx", "yxz", "xyz", "zxy", "yzx", "xzy"])
def test_tiff_axes(tmp_path, data, order, compression):
    array = stored(data, order)
    meta = {"axes": order.upper(), "spacing": 0.05, "unit": "um"}
    options = {"resolution": (1 / 4e-7, 1 / 6e-7), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        tmp_path / "a.tif",
        array,
        metadata=meta,
        photometric="minisblack",
        compression=compression,
        **options,
    )
    check(open_volume(tmp_path / "a.tif"), data)


@pytest.mark.parametrize("order", ["zyx", "yzx", "tzcyx", "zcyx"])
@pytest.mark.parametrize("unit", ["nm", "µm", "mm", "Å"])
def test_ome_tiff_axes_and_units(tmp_path, data, order, unit):
    scale = {"nm": 1, "µm": 1e3, "mm": 1e6, "Å": 0.1}[unit]
    meta = {"axes": order.upper()}
    for axis, size in zip("ZYX", VOXEL, strict=True):
        meta |= {f"PhysicalSize{axis}": size / scale, f"PhysicalSize{axis}Unit": unit}
    if order == "yzx":  # which tifffile does not write as OME
        with pytest.raises(Exception, match=r"axes|dimension"):
            tifffile.imwrite(tmp_path / "a.ome.tif", stored(data, order), ome=True, metadata=meta)
        return
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        stored(data, order),
        ome=True,
        metadata=meta,
        photometric="minisblack",
    )
    check(open_volume(tmp_path / "a.ome.tif"), data)


def test_time_points_of_a_tiff_are_taken_for_sections_and_said(tmp_path, data):
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TYX"})
    with pytest.warns(UserWarning, match="5 time points are taken for sections"):
        check(open_volume(tmp_path / "a.tif", voxel_nm=VOXEL), data)


@pytest.mark.parametrize("unit", ["nanometer", "micrometer", "angstrom"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("order", ["zyx", "xyz", "yxz", "czyx"])
def test_ome_zarr(tmp_path, data, order, version, unit):
    sizes = [v / UNITS[unit] for v in VOXEL]
    shift = [3 * sizes[0], 0, 2 * sizes[2]]
    datasets = [moved("0", along(sizes, order), along(shift, order, 0))]
    path = ngff(
        tmp_path / "a.zarr",
        {"0": stored(data, order)},
        datasets,
        axes=order,
        unit=unit,
        version=version,
    )
    check(open_volume(path), data, offset=(3, 0, 2))
    check(open_volume(f"{path}::0"), data, offset=(3, 0, 2))
    check(open_volume(path / "0"), data, offset=(3, 0, 2))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_by_its_own_library(tmp_path, data, version):
    writer = pytest.importorskip("ome_zarr.writer", reason="ome-zarr is not installed")
    form = importlib.import_module("ome_zarr.format").format_from_version(version)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=form.zarr_format)
    half = data[:, ::2, ::2][None]
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    steps = [
        moved("", (1, 0.05, y, x), (0, 0.1, 0, 0.004))["coordinateTransformations"]
        for y, x in ((0.006, 0.004), (0.012, 0.008))
    ]
    writer.write_multiscale(
        [data[None], half], group, fmt=form, axes=axes, coordinate_transformations=steps
    )
    check(open_volume(tmp_path / "a.zarr"), data, offset=(2, 0, 1))


def system(name, axes="zyx"):
    named = [{"name": a, "type": "space", "unit": "micrometer"} for a in axes]
    return {"name": name, "axes": named}


def ngff06(path, array, change, **more):
    step = {"input": "0", "output": "physical", **change}
    datasets = [{"path": "0", "coordinateTransformations": [step]}]
    more = {"coordinateSystems": [system("physical")], **more}
    return ngff(path, {"0": array}, datasets, version="0.6", **more)


def test_ome_zarr_06(tmp_path, data):
    scale = {"type": "scale", "scale": [0.05, 0.006, 0.004]}
    shift = {"type": "translation", "translation": [0.1, 0.006, 0]}
    both = {"type": "sequence", "transformations": [scale, shift]}
    check(open_volume(ngff06(tmp_path / "a", data, scale)), data)
    check(open_volume(ngff06(tmp_path / "b", data, both)), data, offset=(2, 1, 0))
    back = {"type": "sequence", "transformations": [shift, scale]}
    found = open_volume(ngff06(tmp_path / "c", data, back))
    np.testing.assert_allclose(found.offset, (0.1, 0.006, 0))
    found = open_volume(ngff06(tmp_path / "d", data, {"type": "identity"}))
    assert found.voxel_nm == (1e3, 1e3, 1e3)
    # Physical z is the array's second axis, y its third, x its first.
    turned = {"type": "mapAxis", "mapAxis": [1, 2, 0]}
    mapped = {"type": "sequence", "transformations": [turned, scale]}
    check(open_volume(ngff06(tmp_path / "e", stored(data, "xzy"), mapped)), data)
    world = {"type": "scale", "scale": [2, 1, 1], "input": "physical", "output": "world"}
    more = {
        "coordinateSystems": [system("world"), system("physical")],
        "coordinateTransformations": [world],
    }
    found = open_volume(ngff06(tmp_path / "f", data, scale, **more))
    np.testing.assert_allclose(found.voxel_nm, (100, 6, 4))


@pytest.mark.parametrize("kind", ["rotation", "affine", "displacements", "bijection"])
def test_what_turns_axes_is_refused_by_name(tmp_path, data, kind):
    path = ngff06(tmp_path / "a.zarr", data, {"type": kind, kind: np.eye(3).tolist()})
    for size in (None, VOXEL):
        with pytest.raises(ValueError, match=rf"a\.zarr: .*type '{kind}'.*a\.zarr::0.*voxel_nm"):
            open_volume(path, voxel_nm=size)
    with pytest.warns(UserWarning, match=kind):
        check(open_volume(f"{path}::0", voxel_nm=VOXEL), data)


@pytest.mark.parametrize(
    ("steps", "axes", "said"),
    [
        ([{"type": "scale", "path": "there"}], "zyx", None),
        ([{"type": "scale", "path": "scale"}], "zyx", "array 'scale', which cannot be read"),
        ([{"type": "scale", "scale": VOXEL}], "czyx", "3 numbers for 4 axes"),
        ([{"type": "scale"}], "zyx", "0 numbers for 3 axes"),
        ([{"type": "scale", "scale": [50, 0, 4]}], "zyx", "is 0 along y"),
        ([{"type": "scale", "scale": ["a", "b", "c"]}], "zyx", "scale of its multiscales is"),
        ([], "zyx", "states no voxel size"),
    ],
)
def test_transformations_that_do_not_fit_need_the_flag(tmp_path, data, steps, axes, said):
    arrays = {"0": stored(data, axes), "there": np.array(VOXEL)}
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    path = ngff(tmp_path / "a.zarr", arrays, datasets, axes=axes)
    if said is None:
        check(open_volume(path), data)
        return
    with pytest.raises(ValueError, match=rf"a\.zarr/0: .*{said}.*--voxel_nm"):
        open_volume(path)
    check(open_volume(path, voxel_nm=VOXEL), data)


def test_an_unknown_unit_is_named(tmp_path, data):
    path = ngff(tmp_path / "a.zarr", {"0": data}, [moved("0", VOXEL)], unit="parsec")
    with pytest.raises(ValueError, match=r"'parsec' along z.*--voxel_nm"):
        open_volume(path)


def test_axes_of_another_number_and_a_missing_unit_need_the_flag(tmp_path, data):
    path = ngff(tmp_path / "a", {"0": data}, [moved("0", (1, *VOXEL))], axes="czyx")
    with pytest.raises(ValueError, match=r"4 axes \(c,z,y,x\) for \(5, 6, 7\).*--voxel_nm"):
        open_volume(path)
    check(open_volume(path, voxel_nm=VOXEL), data)
    path = ngff(tmp_path / "b", {"0": data}, [moved("0", VOXEL)], unit="")
    with pytest.raises(ValueError, match=r"no unit along z.*--voxel_nm"):
        open_volume(path)


# Levels.


@pytest.mark.parametrize("first", [0, 1])
def test_the_finest_level_is_opened_and_said(tmp_path, data, capsys, first):
    half = data[:, ::2, ::2]
    coarse = (50, 12, 8)
    datasets = [moved("fine", VOXEL), moved("half", coarse, (0, 3, 2))]
    path = ngff(tmp_path / "a.zarr", {"fine": data, "half": half}, datasets[:: 1 - 2 * first])
    check(open_volume(path), data)
    assert "level fine of 2 is opened, the finest: 50 x 6 x 4 nm" in capsys.readouterr().err
    check(open_volume(f"{path}::half"), half, coarse, offset=(0, 0.25, 0.25))
    levels = open_levels(path)
    assert [level.voxel_nm for level in levels] == [VOXEL, coarse]
    assert levels[1].origin_nm == (0, 3, 2)


def test_a_level_that_is_not_there_stops_only_who_needs_it(tmp_path, data):
    datasets = [moved("fine", VOXEL), moved("half", (50, 12, 8))]
    check(open_volume(ngff(tmp_path / "a", {"fine": data}, datasets)), data)
    path = ngff(tmp_path / "b", {"half": data[:, ::2, ::2]}, datasets)
    with pytest.raises(FileNotFoundError, match=r"b/fine: no array; the multiscales of .*b name"):
        open_volume(path)


def precomputed(path, arrays, *, turned=False, start=(0, 0, 0)):
    """Scales of a Neuroglancer volume, each with its voxel size (z, y, x)."""
    for array, voxel in arrays:
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
            "scale_metadata": {
                "size": array.shape[::-1],
                "encoding": "raw",
                "chunk_size": [4, 4, 4],
                "resolution": voxel[::-1],
                "voxel_offset": start[::-1],
            },
        }
        ts.open(spec, create=True).result()[...] = array.T[..., None]
    if turned:
        info = json.loads((path / "info").read_text())
        info["scales"] = info["scales"][::-1]
        (path / "info").write_text(json.dumps(info))
    return path


@pytest.mark.parametrize("turned", [False, True])
def test_precomputed_scales_and_offset(tmp_path, data, capsys, turned):
    half = data[:, ::2, ::2]
    scales = [(data, VOXEL), (half, (50, 12, 8))]
    path = precomputed(tmp_path / "a", scales, turned=turned, start=(3, 2, 1))
    check(open_volume(path), data, offset=(3, 2, 1))
    assert "level 4_6_50 of 2 is opened" in capsys.readouterr().err
    check(open_volume(f"{path}::8_12_50"), half, (50, 12, 8), offset=(3, 2, 1))


def n5(path, array, **attributes):
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}}
    store = ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
    store[...] = array
    held = json.loads((path / "attributes.json").read_text())
    (path / "attributes.json").write_text(json.dumps(held | attributes))


def test_n5_levels_units_and_names(tmp_path, data, capsys):
    voxel = {"dimensions": [0.004, 0.006, 0.05], "unit": "um"}
    flat = np.ascontiguousarray(data.T)
    n5(tmp_path / "a/s0", flat, offset=[0.004, 0.012, 0.05], pixelResolution=voxel)
    n5(tmp_path / "a/s1", flat[::2, ::2], downsamplingFactors=[2, 2, 1], pixelResolution=voxel)
    check(open_volume(tmp_path / "a"), data, offset=(1, 2, 1))
    assert "level s0 of 2" in capsys.readouterr().err
    check(open_volume(f"{tmp_path / 'a'}::s1"), data[:, ::2, ::2], (50, 12, 8))
    transform = {
        "axes": ["z", "y", "x"],
        "scale": VOXEL,
        "translate": [50, 0, 8],
        "units": ["nm"] * 3,
    }
    n5(tmp_path / "b", flat, transform=transform)
    check(open_volume(tmp_path / "b"), data, offset=(1, 0, 2))
    n5(tmp_path / "c", data, axes=["z", "y", "x"], resolution=VOXEL)
    check(open_volume(tmp_path / "c"), data)


# Voxel sizes that cannot be.


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((0.05, 0.004, 0.004), "below 0.1 nm; is that in um.*=50,4,4"),
        ((2e5, 1e5, 1e5), "above 100"),
    ],
)
def test_voxels_of_impossible_size_are_questioned(tmp_path, data, size, said):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = data
        file["raw"].attrs["resolution"] = size
    with pytest.raises(ValueError, match=rf"a\.h5::raw: .*{said}"):
        open_volume(tmp_path / "a.h5")
    with pytest.warns(UserWarning, match="states voxels"):
        check(open_volume(tmp_path / "a.h5", voxel_nm=VOXEL), data)
    with pytest.raises(ValueError, match=said):
        open_volume(tmp_path / "a.h5", voxel_nm=size)


# Absent data.


def chunked(driver, path, data):
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}
    layout = {"chunk": {"shape": [2, 3, 7]}}
    schema = {"chunk_layout": layout, "dtype": "uint8", "domain": {"shape": data.shape}}
    ts.open(spec | {"schema": schema}, create=True).result()[...] = data
    return [p for p in path.rglob("*") if p.is_file() and p.name[0].isdigit()]


@pytest.mark.parametrize("driver", ["zarr", "zarr3", "n5"])
def test_absent_chunks_are_counted(tmp_path, data, driver, recwarn):
    files = chunked(driver, tmp_path / "a", data)
    assert len(files) == 6
    open_volume(tmp_path / "a", voxel_nm=VOXEL)
    assert not recwarn.list
    files[0].unlink()
    with pytest.warns(UserWarning, match="1 of 6 chunks are not there and are read as 0"):
        open_volume(tmp_path / "a", voxel_nm=VOXEL)
    packed = files[1].with_name(files[1].name + ".gz")
    packed.write_bytes(gzip.compress(files[1].read_bytes()))
    files[1].unlink()
    with pytest.raises(ValueError, match=r"compressed files.*gunzip"):
        open_volume(tmp_path / "a", voxel_nm=VOXEL)
    for file in [packed, *files[2:]]:
        file.unlink()
    with pytest.raises(ValueError, match="none of its 6 chunks is there"):
        open_volume(tmp_path / "a", voxel_nm=VOXEL)


def test_precomputed_chunks_that_are_packed_or_gone(tmp_path, data, recwarn):
    path = precomputed(tmp_path / "a", [(data, VOXEL)], start=(0, -3, 2))
    open_volume(path)
    assert not recwarn.list
    files = sorted((path / "4_6_50").iterdir())
    for file in files:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    with pytest.raises(ValueError, match=r"a: chunks such as .*\.gz are compressed.*gunzip -r"):
        open_volume(path)


def test_hdf5_voxels_that_are_not_there(tmp_path, data):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        part = file.create_dataset("part", SHAPE, "u1", chunks=(5, 3, 7))
        part[:, :3] = data[:, :3]
        file.create_dataset("empty", SHAPE, "u1", chunks=(5, 3, 7))
        layout = h5py.VirtualLayout(SHAPE, "u1")
        layout[...] = h5py.VirtualSource("elsewhere.h5", "raw", SHAPE)
        file.create_virtual_dataset("virtual", layout)
    with pytest.warns(UserWarning, match="part: 1 of 2 chunks"):
        open_volume(f"{tmp_path / 'a.h5'}::part", voxel_nm=VOXEL)
    with pytest.raises(ValueError, match="empty: nothing was written"):
        open_volume(f"{tmp_path / 'a.h5'}::empty", voxel_nm=VOXEL)
    with pytest.raises(ValueError, match=r"virtual: its voxels lie in elsewhere\.h5"):
        open_volume(f"{tmp_path / 'a.h5'}::virtual", voxel_nm=VOXEL)


# Arrays inside files.


def test_hdf5_arrays_links_and_filters(tmp_path, data):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["volumes/raw"], file["four"] = data, data[None, ..., None]
        file["soft"], file["hard"] = h5py.SoftLink("/volumes/raw"), file["volumes/raw"]
        file["volumes/round"] = h5py.SoftLink("/")
        file["lost"], file["flat"] = h5py.SoftLink("/nothing"), data[0]
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["only"] = h5py.ExternalLink("a.h5", "/volumes/raw")
    for inner in ("volumes/raw", "/volumes/raw", "soft", "hard", "four"):
        check(open_volume(f"{path}::{inner}", voxel_nm=VOXEL), data)
    check(open_volume(tmp_path / "b.h5", voxel_nm=VOXEL), data)
    with pytest.raises(ValueError, match=r"a link to /nothing, which is not there"):
        open_volume(f"{path}::lost", voxel_nm=VOXEL)
    with pytest.raises(ValueError, match=r"2 data sets are 3-D; choose one as .*a\.h5::NAME"):
        open_volume(path, voxel_nm=VOXEL)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk(SHAPE)
        plan.set_filter(32008, h5py.h5z.FLAG_OPTIONAL, (0, 2))
        space = h5py.h5s.create_simple(SHAPE)
        made = h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, space, plan)
        h5py.Dataset(made)[...] = data
    if not h5py.h5z.filter_avail(32008):
        said = r"c\.h5::raw: compressed with bitshuffle \(filter 32008\).*pip install hdf5plugin"
        with pytest.raises(ValueError, match=said):
            open_volume(tmp_path / "c.h5", voxel_nm=VOXEL)


def test_a_channel_is_chosen_by_name(tmp_path, data):
    both = np.stack([data, data[::-1]])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = both
    with pytest.raises(ValueError, match=r"expected a single channel.*a\.h5::raw::c=0"):
        open_volume(tmp_path / "a.h5", voxel_nm=VOXEL)
    check(open_volume(f"{tmp_path / 'a.h5'}::raw::c=1", voxel_nm=VOXEL), data[::-1])
    with pytest.raises(ValueError, match=r"c=2 is none of 0..1"):
        open_volume(f"{tmp_path / 'a.h5'}::c=2", voxel_nm=VOXEL)
    hyper = np.ascontiguousarray(both.transpose(1, 0, 2, 3))
    tifffile.imwrite(tmp_path / "a.tif", hyper, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(ValueError, match="single channel"):
        open_volume(tmp_path / "a.tif", voxel_nm=VOXEL)
    check(open_volume(f"{tmp_path / 'a.tif'}::c=1", voxel_nm=VOXEL), data[::-1])


# Several images, several files.


def test_several_images_in_a_tiff(tmp_path, data):
    for name, options in (("a.ome.tif", {"ome": True}), ("b.tif", {})):
        with tifffile.TiffWriter(tmp_path / name, **options) as writer:
            for array in (data, data[::-1]):
                writer.write(array, metadata={"axes": "ZYX"}, photometric="minisblack")
        with pytest.raises(ValueError, match=rf"2 images in one file .*choose one as .*{name}::0"):
            open_volume(tmp_path / name, voxel_nm=VOXEL)
        check(open_volume(f"{tmp_path / name}::0", voxel_nm=VOXEL), data)
        check(open_volume(f"{tmp_path / name}::1", voxel_nm=VOXEL), data[::-1])
        with pytest.raises(ValueError, match="no image '2'"):
            open_volume(f"{tmp_path / name}::2", voxel_nm=VOXEL)


def ome_set(folder, data):
    """One OME-TIFF of a file a section, named against the order of sections."""
    names = [f"m_{len(data) - i}.ome.tif" for i in range(len(data))]
    ids = [f"urn:uuid:{uuid.UUID(int=i + 1)}" for i in range(len(data))]
    planes = "".join(
        f'<TiffData FirstZ="{i}" FirstC="0" FirstT="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name}">{key}</UUID></TiffData>'
        for i, (name, key) in enumerate(zip(names, ids, strict=True))
    )
    z, y, x = data.shape
    for name, key, section in zip(names, ids, data, strict=True):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/'
            f'Schemas/OME/2016-06" UUID="{key}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYZCT" Type="uint8" SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="1" '
            'SizeT="1" PhysicalSizeX="0.004" PhysicalSizeY="0.006" PhysicalSizeZ="0.05">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(folder / name, section, description=xml.encode(), metadata=None)
    return names


def test_an_ome_tiff_of_several_files(tmp_path, data):
    names = ome_set(tmp_path, data)
    check(open_volume(tmp_path), data)
    check(open_volume(tmp_path / names[2]), data)
    (tmp_path / names[1]).unlink()
    for path in (tmp_path, tmp_path / names[2]):
        with pytest.raises(ValueError, match=rf"one file of a set of 5, of which 1 .*{names[1]}"):
            open_volume(path)


def sections(folder, data, numbers, name="s{}.png"):
    folder.mkdir()
    for section, number in zip(data, numbers, strict=True):
        Image.fromarray(section).save(folder / name.format(number))
    return folder


def test_sections_are_paired_by_number(tmp_path, data):
    image = sections(tmp_path / "image", data, range(5))
    same = sections(tmp_path / "same", data, range(5), "mask_{:03}.png")
    pair = open_pair(image, same, voxel_nm=VOXEL)
    assert pair[0].sections == pair[1].sections == (0, 1, 2, 3, 4)
    other = sections(tmp_path / "other", data, [0, 1, 2, 3, 7])
    with pytest.warns(UserWarning, match="jump"), pytest.raises(ValueError) as caught:
        open_pair(image, other, voxel_nm=VOXEL)
    assert "image has no section 7" in str(caught.value)
    assert "other has no section 4" in str(caught.value)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("s04.png", "s4.png and s04.png are both section 4"),
        ("s4 copy.png", "are both section 4"),
        ("s2 (1).png", "are both section 1"),
        ("s5.jpg", "1 other pictures, such as s5.jpg"),
    ],
)
def test_files_that_would_be_dropped_or_counted_twice_are_named(tmp_path, data, added, said):
    folder = sections(tmp_path / "a", data, range(5))
    Image.fromarray(data[0]).save(folder / added)
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        open_volume(folder, voxel_nm=VOXEL)


def test_numbers_of_channels_and_times_are_told_from_sections(tmp_path, data):
    folder = sections(tmp_path / "a", data, range(5), "2024_s{}_c1_8nm.png")
    assert open_volume(folder, voxel_nm=VOXEL).sections == (0, 1, 2, 3, 4)
    for section, number in zip(data, range(5), strict=True):
        Image.fromarray(section).save(folder / f"2024_s{number}_c2_8nm.png")
    with pytest.raises(ValueError, match="hold 5 x 2 numbers"):
        open_volume(folder, voxel_nm=VOXEL)


@pytest.mark.parametrize("name", ["info", "attributes.json", ".zattrs"])
@pytest.mark.parametrize("text", ["Voxels 50 nm\n", "{}", "[1]"])
def test_notes_beside_sections_make_no_store(tmp_path, data, name, text):
    folder = sections(tmp_path / "a", data, range(5))
    (folder / name).write_text(text)
    check(open_volume(folder, voxel_nm=VOXEL), data)


# Pairs by position.


@pytest.mark.parametrize("form", ["ngff", "precomputed", "hdf5"])
def test_pairs_by_stated_positions(tmp_path, data, form):
    def write(name, array, start):
        path = tmp_path / name
        at = np.multiply(start, VOXEL).tolist()
        if form == "ngff":
            return ngff(path, {"0": array}, [moved("0", VOXEL, at)])
        if form == "precomputed":
            return precomputed(path, [(array, VOXEL)], start=start)
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            file["a"] = array
            file["a"].attrs.update({"resolution": VOXEL, "offset": at})
        return path.with_suffix(".h5")

    whole = write("whole", data, (10, 0, 0))
    part = write("part", data[1:4, :, 2:], (11, 0, 2))
    for one, other in ((whole, part), (part, whole)):
        image, labels = open_pair(one, other)
        np.testing.assert_array_equal(image.read(), labels.read())
        assert image.array.shape == (3, 6, 5) and image.offset == labels.offset == (11, 0, 2)
    # The same shape is not the same box where both say where they lie.
    image, labels = open_pair(whole, write("moved", np.roll(data, -2, 2), (10, 0, 2)))
    np.testing.assert_array_equal(image.read(), data[:, :, 2:])
    np.testing.assert_array_equal(labels.read(), data[:, :, 2:])
    with pytest.raises(ValueError, match="expected volumes that overlap"):
        open_pair(whole, write("far", data, (40, 0, 0)))


def test_cremi(tmp_path, data):
    """Labels of a padded volume state an offset in nm; the image, none."""
    with h5py.File(tmp_path / "cremi.h5", "w") as file:
        raw = file.create_dataset("volumes/raw", data=data, compression="gzip")
        ids = file.create_dataset("volumes/labels/neuron_ids", data=data[1:3, 2:, 3:].astype("u8"))
        raw.attrs["resolution"] = ids.attrs["resolution"] = VOXEL
        ids.attrs["offset"] = (50, 12, 12)
    path = tmp_path / "cremi.h5"
    image, labels = open_pair(f"{path}::volumes/raw", f"{path}::volumes/labels/neuron_ids")
    np.testing.assert_array_equal(image.read(), labels.read())
    assert image.voxel_nm == VOXEL and image.array.shape == (2, 4, 4)


def test_a_part_without_a_position_is_not_put_anywhere(tmp_path, data):
    image = ngff(tmp_path / "a", {"0": data}, [moved("0", VOXEL, (0, 0, 0))])
    tifffile.imwrite(tmp_path / "part.tif", data[1:4, :, 2:], photometric="minisblack")
    with pytest.raises(ValueError, match=r"part\.tif is \(3, 6, 5\) and states no position"):
        open_pair(image, tmp_path / "part.tif")
    tifffile.imwrite(tmp_path / "whole.tif", data, photometric="minisblack")
    check(open_pair(image, tmp_path / "whole.tif")[1], data)


def test_a_path_into_a_file_is_told_how_it_is_written(tmp_path, data):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volumes/raw"] = data
    with pytest.raises(FileNotFoundError, match=r"is written .*a\.h5::volumes/raw"):
        open_volume(tmp_path / "a.h5/volumes/raw", voxel_nm=VOXEL)


def test_snemi(tmp_path, data):
    tifffile.imwrite(tmp_path / "train-input.tif", data, photometric="minisblack")
    tifffile.imwrite(tmp_path / "train-labels.tif", data.astype("u2"), compression="packbits")
    image, labels = open_pair(
        tmp_path / "train-input.tif", tmp_path / "train-labels.tif", voxel_nm=(30, 6, 6)
    )
    check(image, data, (30, 6, 6))
    check(labels, data, (30, 6, 6))


def test_a_pair_of_other_voxels_or_between_voxels_is_refused(tmp_path, data):
    image = ngff(tmp_path / "a", {"0": data}, [moved("0", VOXEL, (0, 0, 0))])
    coarse = ngff(tmp_path / "b", {"0": data}, [moved("0", (50, 12, 8), (0, 0, 0))])
    with pytest.raises(ValueError, match=r"voxels of 50 x 12 x 8 nm.*50 x 6 x 4 nm.*--voxel_nm"):
        open_pair(image, coarse)
    between = ngff(tmp_path / "c", {"0": data}, [moved("0", VOXEL, (0, 3, 0))])
    with pytest.raises(ValueError, match="differ by whole voxels"):
        open_pair(image, between)


def test_opening_a_pair_takes_the_memory_of_metadata(tmp_path):
    mapped = tifffile.memmap(tmp_path / "image.tif", shape=(2000, 512, 512), dtype=np.uint8)
    mapped[:, 0, 0] = 1
    del mapped
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file.create_dataset("ids", (2000, 512, 512), "u1")[:, 0, 0] = 1
    tracemalloc.start()
    image, labels = open_pair(tmp_path / "image.tif", tmp_path / "labels.h5", voxel_nm=VOXEL)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert image.array.shape == labels.array.shape == (2000, 512, 512)
    assert peak < 20e6 < image.array.nbytes / 20 and held < 2e6


# Files that nobody here wrote.

REAL = {
    "gala/train-image.h5": ((50, 100, 200), None),
    "gala/train-gt.lzf.h5": ((50, 100, 200), None),
    "neuroglancer/all_0.6/basic/scale.zarr": ((27, 226, 186), (4e3, 3e3, 2e3)),
    "neuroglancer/all_0.6/basic/translation.zarr": ((27, 226, 186), (1e3, 1e3, 1e3)),
    "neuroglancer/all_0.6/basic/identity.zarr": ((27, 226, 186), (1e3, 1e3, 1e3)),
    "neuroglancer/all_0.6/basic/sequenceScaleTranslation.zarr": (
        (27, 226, 186),
        (4e3, 3e3, 2e3),
    ),
    "neuroglancer/all_0.6/axis_dependent/mapAxis.zarr": ((226, 186, 27), (1e3, 1e3, 1e3)),
}
REFUSED = {
    "neuroglancer/all_0.6/simple/rotation.zarr": "'rotation'",
    "neuroglancer/all_0.6/simple/affine.zarr": "'affine'",
    "neuroglancer/all_0.6/simple/anisotropic_rotation.zarr": "'affine'",
    "neuroglancer/simple_0.4": "axes y,x",
    "neuroglancer/simple_0.5": "axes y,x",
    "neuroglancer/one_channel": "none of its 1 chunks is there",
}


@pytest.mark.skipif(not FORMATS.is_dir(), reason=f"{FORMATS} is not there")
@pytest.mark.parametrize("name", REAL)
def test_real_files(tmp_path, name):
    shape, voxel = REAL[name]
    place = FORMATS / name
    volume = open_volume(place, voxel_nm=VOXEL if voxel is None else None)
    assert volume.array.shape == shape and volume.voxel_nm == (voxel or VOXEL)
    chunk = place / "array/c/0/0/0"
    if chunk.is_file():  # a symbolic link that was stored as its text
        with pytest.raises(ValueError, match=r"array: \[0:27,0:226,0:186\] cannot be read"):
            volume.read()
        shutil.copytree(place, tmp_path / "a.zarr", copy_function=shutil.copyfile)
        whole = (chunk.parent / chunk.read_text()).resolve()
        os.chmod(tmp_path / "a.zarr/array/c/0/0", 0o755)
        shutil.copyfile(whole, tmp_path / "a.zarr/array/c/0/0/0")
        place = tmp_path / "a.zarr"
        volume = open_volume(place)
    found = np.ascontiguousarray(volume.read())
    assert zlib.crc32(found) == zlib.crc32(independent(place))


def independent(place):
    """The same voxels by the format's own library."""
    if place.suffix == ".h5":
        with h5py.File(place) as file:
            return np.ascontiguousarray(file["stack"][...])
    array = np.asarray(zarr.open_array(place / "array", mode="r")[...])
    turned = "mapAxis" in (place / "zarr.json").read_text()
    return np.ascontiguousarray(array.transpose(1, 2, 0) if turned else array)


@pytest.mark.skipif(not FORMATS.is_dir(), reason=f"{FORMATS} is not there")
@pytest.mark.parametrize("name", REFUSED)
def test_real_files_that_are_refused(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        open_volume(FORMATS / name, voxel_nm=VOXEL)
