"""Chunked stores as volumes: Zarr 2 and 3, OME-Zarr, N5 and Neuroglancer precomputed.

They may lie in a folder or behind ``gs://``, ``s3://``, ``http://`` or ``https://``.
"""

import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from densejax.data.blocks import box_text
from densejax.data.geometry import (
    IN_FILE,
    Geometry,
    Opened,
    default_axes,
    from_attributes,
    lengths,
    unit_nm,
)
from densejax.data.ngff import OURS, level_geometry

REMOTE = ("gs://", "s3://", "http://", "https://")
REMOTE_WAIT_S = 60.0
MOST_CHUNKS = 500_000  # of a store whose files are counted

_MARKERS = ("zarr.json", ".zarray", ".zgroup", ".zattrs", "attributes.json", "info")
# What a chunk's file is called, without the folder of its array, in all formats and key encodings.
_CHUNK = re.compile(r"(c[/.])?\d+([./]\d+)*|-?\d+--?\d+(_-?\d+--?\d+){2}")


def is_remote(path: str) -> bool:
    """Return whether ``path`` is a URL of a remote store."""
    return str(path).startswith(REMOTE)


def is_store(path: str | Path, *, sections: bool = False) -> bool:
    """Return whether a local folder is a chunked store.

    Args:
        path: the folder.
        sections: it holds pictures, too: only a file that describes an array makes it a store,
            not notes that happen to have such a name.
    """
    if not sections:
        there = any((Path(path) / marker).is_file() for marker in _MARKERS)
        return there or bool(_n5_levels(str(path)))  # whose group may have no file of its own
    try:
        metadata = _read_metadata(str(path))
        return bool(_multiscales(metadata)) or _driver(metadata) is not None
    except ValueError:
        return False


def open_chunked(path: str | Path, *, dataset: str | None = None) -> Opened:
    """Open a Zarr, N5 or precomputed array.

    A group with OME multiscales, an N5 group of ``s0``, ``s1``, ... and a precomputed volume open
    at their finest level, found by its scale. Chunks that are not there are counted in local
    stores and warned of.

    Args:
        path: a folder or a URL.
        dataset: path of an array inside a group, or the key of a precomputed scale.

    Raises:
        FileNotFoundError: nothing there is a store.
        ConnectionError: the remote store gives no answer in ``REMOTE_WAIT_S`` or refuses.
        ValueError: a group without multiscales and no ``dataset``, transformations that turn the
            axes, or a local store of which no chunk can be read.
    """
    root = str(path).rstrip("/")
    inner = None if dataset is None else dataset.strip("/")
    name = root if inner is None else f"{root}/{inner}"
    metadata = _read_metadata(name)
    if not metadata and inner is not None:
        scales = _read_metadata(root).get("info", {}).get("scales") or ()
        if inner in [scale.get("key") for scale in scales]:
            name, metadata = root, _read_metadata(root)
    if not metadata and not _n5_levels(name):
        raise FileNotFoundError(f"{name}: no Zarr, N5 or precomputed store")
    if _multiscales(metadata):
        return _open_multiscale(name, metadata)
    driver = _driver(metadata)
    if driver == "neuroglancer_precomputed":
        return _open_precomputed(name, metadata["info"], None if name != root else inner)
    if driver is None:
        levels = _n5_levels(name)
        if not levels:
            raise ValueError(
                f"{name}: a group without OME multiscales; choose an array in it as "
                f"{name}{IN_FILE}ARRAY{_listed(name)}"
            )
        finest = min(levels, key=lambda level: levels[level])
        opened = open_chunked(name, dataset=finest)
        level = f"level {finest} of {len(levels)}" if len(levels) > 1 else ""
        return replace(opened, geometry=replace(opened.geometry, level=level))
    store = open_store(driver, name)
    geometry = _of_level(name, root, inner, store) or _array_geometry(name, store, driver, metadata)
    # A level of an image that densejax wrote: blocks of its fill value have no file there.
    group = {} if is_remote(name) else _around(name.rpartition("/")[0])
    _count_chunks(
        store, name, name, ours=any(OURS in _attributes(held) for held in (metadata, group))
    )
    return _opened(store, name, geometry)


def open_store(driver: str, name: str, *, write: bool = False, **options: Any) -> ts.TensorStore:
    """Open a store by tensorstore's name of its format.

    Args:
        driver: such as ``zarr3``.
        name: a folder or a URL.
        write: whether voxels may be written.
        options: of that driver.

    Raises:
        ValueError: it cannot be opened.
    """
    try:
        spec = {"driver": driver, "kvstore": _kvstore(name)}
        return ts.open({**spec, **options}, read=True, write=write).result()
    except Exception as error:  # tensorstore raises its own kinds, by cause
        raise ValueError(f"{name}: cannot be opened as {driver} ({_said(error)})") from error


def read_box(store: ts.TensorStore, box: Sequence[slice], *, name: str) -> np.ndarray:
    """Read a box of a store.

    Raises:
        ValueError: it cannot be read; the message names the store and the box.
    """
    try:
        return store[tuple(box)].read().result()
    except Exception as error:  # tensorstore raises its own kinds, by cause
        raise ValueError(f"{name}: [{box_text(box)}] cannot be read ({_said(error)})") from error


def _kvstore(name: str) -> str:
    return f"{name}/" if is_remote(name) else Path(name).resolve().as_uri() + "/"


def _read_metadata(name: str) -> dict[str, dict[str, Any]]:
    """Return the metadata files that are there, by name, as parsed JSON."""
    store = ts.KvStore.open(_kvstore(name)).result()
    waiting = {marker: store.read(marker) for marker in _MARKERS}
    found: dict[str, dict[str, Any]] = {}
    refused: list[Exception] = []
    deadline = time.monotonic() + REMOTE_WAIT_S
    for marker, future in waiting.items():
        try:
            answer = future.result(timeout=max(0.1, deadline - time.monotonic()))
        except Exception as error:  # a closed bucket refuses what is missing instead of saying so
            refused.append(error)
            continue
        if answer.state == "value":
            try:
                found[marker] = json.loads(answer.value)
            except ValueError as error:
                raise ValueError(f"{name}/{marker}: not valid JSON ({error})") from error
            if not isinstance(found[marker], dict):
                raise ValueError(f"{name}/{marker}: expected a dictionary in JSON")
    if refused and not found:
        cause = refused[0]
        why = f"no answer in {REMOTE_WAIT_S:g} s" if isinstance(cause, TimeoutError) else cause
        raise ConnectionError(f"{name}: no metadata can be read ({why})") from cause
    return found


def _said(error: Exception) -> str:
    """A message of tensorstore's without the dump of what it was asked."""
    text = re.sub(r"\s*\[(tensorstore_spec|source locations|\w+)=.*", "", str(error), flags=re.S)
    if unknown := re.search(r'"([\w.]+)" is not registered', text):
        return f"it is written with {unknown[1]}, which tensorstore lacks; write it with another"
    return text


def _driver(metadata: dict[str, dict[str, Any]]) -> str | None:
    """Return tensorstore's name of the format of an array, or None for a group."""
    if metadata.get("zarr.json", {}).get("node_type") == "array":
        return "zarr3"
    if ".zarray" in metadata:
        return "zarr"
    if "dimensions" in metadata.get("attributes.json", {}):
        return "n5"
    return "neuroglancer_precomputed" if "scales" in metadata.get("info", {}) else None


def _attributes(metadata: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return _zarr_attributes(metadata) or metadata.get("attributes.json") or {}


def _zarr_attributes(metadata: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return metadata.get("zarr.json", {}).get("attributes") or metadata.get(".zattrs") or {}


def _around(name: str) -> dict[str, dict[str, Any]]:
    """The metadata of what a store lies in, which may be anything or nothing."""
    try:
        return _read_metadata(name)
    except (OSError, ValueError):
        return {}


def _multiscales(metadata: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The OME multiscales of a group: since version 0.5 in zarr.json, before in .zattrs."""
    held = _zarr_attributes(metadata)  # N5 has a key of that name, too, for something else
    ome = held.get("ome")
    found = (ome.get("multiscales") if isinstance(ome, dict) else None) or held.get("multiscales")
    return [m for m in found or () if isinstance(m, dict) and m.get("datasets")]


def _open_multiscale(name: str, metadata: dict[str, dict[str, Any]]) -> Opened:
    """Open the finest level, by its scale, else by its number of voxels."""
    scales = _multiscales(metadata)
    inners = [f"{name}/{dataset.get('path')}" for dataset in scales[0]["datasets"]]
    levels = [_level(name, scales[0], number, None) for number in range(len(inners))]
    sizes = [math.prod(level.voxel_nm) for level in levels if level.voxel_nm]
    if len(sizes) < len(levels):  # what the file says of some cannot be used
        sizes = [-math.prod(_stored_level(inner, name).shape) for inner in inners]
    number = sizes.index(min(sizes))
    inner = inners[number]
    store = _stored_level(inner, name)
    geometry = _level(name, scales[0], number, store)
    if len(scales) > 1:
        names = ", ".join(str(scale.get("name", i)) for i, scale in enumerate(scales))
        warnings.warn(f"{name}: {len(scales)} images ({names}); the first is opened", stacklevel=4)
    _count_chunks(store, inner, inner, ours=OURS in _attributes(metadata))
    return _opened(store, inner, geometry)


def _stored_level(inner: str, name: str) -> ts.TensorStore:
    driver = _driver(_read_metadata(inner))
    if driver is None:
        raise FileNotFoundError(f"{inner}: no array; the multiscales of {name} name it")
    return open_store(driver, inner)


def _level(
    name: str, multiscale: dict[str, Any], number: int, store: ts.TensorStore | None
) -> Geometry:
    def read_numbers(path: str) -> Sequence[float]:
        inner = f"{name}/{path}"
        return _stored_level(inner, name).read().result().ravel().tolist()

    shape = None if store is None else tuple(store.shape)
    return level_geometry(multiscale, number, shape, name=name, read_numbers=read_numbers)


def _of_level(name: str, root: str, inner: str | None, store: ts.TensorStore) -> Geometry | None:
    """What the multiscale group around an array states of it, where there is one."""
    parts = name.split("/")
    # Behind a URL every look costs a request, and above it may be what nobody may read.
    most = 0 if is_remote(name) and inner is None else 3
    for up in range(1, min(most, len(parts) - 1) + 1):
        group, path = "/".join(parts[:-up]), "/".join(parts[-up:])
        if is_remote(name) and len(group) < len(root):
            break
        for scale in _multiscales(_around(group)):
            paths = [str(d.get("path")).strip("/") for d in scale["datasets"]]
            if path in paths:
                try:
                    return replace(_level(group, scale, paths.index(path), store), level="")
                except ValueError as error:
                    return Geometry(default_axes(store.shape), problem=str(error))
    return None


def _array_geometry(
    name: str, store: ts.TensorStore, driver: str, metadata: dict[str, dict[str, Any]]
) -> Geometry:
    """What an array states of itself: names and units of dimensions, else its attributes."""
    shape = tuple(store.shape)
    attributes = dict(_attributes(metadata))
    names = metadata.get("zarr.json", {}).get("dimension_names")
    if driver == "n5" and not {"pixelResolution", "resolution"} & set(attributes):
        # Of a level, the group above may state the finest voxels.
        group = _attributes(_around(name.rpartition("/")[0]))
        above = ("pixelResolution", "resolution", "units", "unit")
        attributes |= {key: group[key] for key in above if key in group}
    geometry = from_attributes(attributes, shape, name=name, axes=names, turned=driver == "n5")
    if geometry.voxel_nm is not None or geometry.problem:
        return geometry
    units = zip(geometry.axes, store.dimension_units, strict=False)
    spatial = {a: u for a, u in units if a in ("z", "y", "x") and u and unit_nm(u.base_unit)}
    if len(spatial) == 3:
        sizes, names = zip(*((u.multiplier, u.base_unit) for u in spatial.values()), strict=True)
        return replace(geometry, voxel_nm=lengths(sizes, list(spatial), names, "dimension_units"))
    return geometry


def _n5_levels(name: str) -> dict[str, float]:
    """The arrays ``s0``, ``s1``, ... of a local N5 group, and how much coarser each one is."""
    if is_remote(name):
        return {}
    found = {}
    for place in sorted(Path(name).glob("s[0-9]*/attributes.json")):
        held = _read_metadata(str(place.parent)).get("attributes.json", {})
        if "dimensions" in held:
            finest = -math.prod(held["dimensions"])
            factors = held.get("downsamplingFactors")
            found[place.parent.name] = math.prod(factors) if factors else finest
    return found


def _listed(name: str) -> str:
    """What a local group holds, for messages."""
    if is_remote(name) or not Path(name).is_dir():
        return ""
    held = [p for p in sorted(Path(name).iterdir()) if p.is_dir() and is_store(p)]
    return f"; it holds {', '.join(p.name for p in held[:12])}" if held else ""


def _open_precomputed(name: str, info: dict[str, Any], key: str | None) -> Opened:
    """Open the finest scale, or the one of a key."""
    try:
        sizes = [math.prod(float(r) for r in scale["resolution"]) for scale in info["scales"]]
        keys = [str(scale["key"]) for scale in info["scales"]]
        number = keys.index(key) if key is not None else sizes.index(min(sizes))
        scale = info["scales"][number]
        voxel = lengths(scale["resolution"], "xyz", ["nm"], "resolution")
        start = [float(v) for v in scale.get("voxel_offset") or (0, 0, 0)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}/info: its scales cannot be read ({error!r})") from error
    level = f"level {keys[number]} of {len(keys)}" if len(keys) > 1 and key is None else ""
    x, y, z = start
    store = open_store("neuroglancer_precomputed", name, scale_index=number)
    # Without an offset in the file, nothing is said of a position.
    stated = "voxel_offset" in scale
    offset = (z * voxel[0], y * voxel[1], x * voxel[2]) if stated else None
    if not scale.get("sharding"):
        _count_chunks(store, f"{name}/{keys[number]}", name)
    shown = name if key is None else f"{name}{IN_FILE}{key}"
    return _opened(store, shown, Geometry(tuple("xyzc")[: store.rank], voxel, offset, level))


def _opened(store: ts.TensorStore, name: str, geometry: Geometry) -> Opened:
    view = store[ts.d[:].translate_to[0]]
    held = view.chunk_layout.read_chunk.shape
    return Opened(
        name,
        tuple(view.shape),
        view.dtype.numpy_dtype,
        lambda box: read_box(view, box, name=name),
        geometry,
        None if held is None else [size or 1 for size in held],
    )


def _count_chunks(store: ts.TensorStore, folder: str, name: str, *, ours: bool = False) -> None:
    """Say how many chunks of a local store have no file; what is not there reads as the fill value.

    Raises:
        ValueError: none has one, or they have names of compressed files.
    """
    held = store.chunk_layout.write_chunk.shape
    if is_remote(name) or ours or held is None:
        return
    grid = [-(-n // (size or n)) if n else 0 for n, size in zip(store.shape, held, strict=True)]
    wanted = math.prod(grid)
    if not 0 < wanted <= MOST_CHUNKS:
        return
    found, packed = 0, ""
    for file in _files(folder):
        stem, dot, ending = file.rpartition(".")
        if _CHUNK.fullmatch(file):
            found += 1
        elif dot and ending in ("gz", "br", "zst", "zstd") and _CHUNK.fullmatch(stem):
            packed = packed or file
    if found >= wanted:
        return
    if packed:
        raise ValueError(
            f"{name}: chunks such as {packed} are compressed files, whose voxels would be "
            f"read as {_fill(store)}; expected them without that ending: unpack them (for .gz: "
            f"gunzip -r {folder}), or write them with compress=False in CloudVolume"
        )
    if not found:
        raise ValueError(
            f"{name}: none of its {wanted} chunks is there, so that every voxel would be read as "
            f"{_fill(store)}; expected files in {folder}"
        )
    warnings.warn(
        f"{name}: {wanted - found} of {wanted} chunks are not there and are read as {_fill(store)}",
        stacklevel=5,
    )


def _files(folder: str) -> Iterator[str]:
    """All files below a folder, by their path in it."""
    for place, _, files in os.walk(folder):
        inner = os.path.relpath(place, folder)
        for file in files:
            yield file if inner == "." else f"{inner}/{file}"


def _fill(store: ts.TensorStore) -> str:
    value: Any = store.fill_value
    return "0" if value is None else f"{np.asarray(value).ravel()[0]:g}"
