"""Chunked stores as volumes: Zarr 2 and 3, OME-Zarr, N5 and Neuroglancer precomputed.

They may lie in a folder or behind ``gs://``, ``s3://``, ``http://`` or ``https://``.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from densejax.data.blocks import box_text
from densejax.data.formats import Box, LazyArray, Opened, check_dtype, unit_nm, voxel_size

REMOTE = ("gs://", "s3://", "http://", "https://")
REMOTE_WAIT_S = 60.0

_MARKERS = ("zarr.json", ".zarray", ".zgroup", ".zattrs", "attributes.json", "info")


def is_remote(path: str) -> bool:
    """Return whether ``path`` is a URL of a remote store."""
    return str(path).startswith(REMOTE)


def is_store(path: str | Path) -> bool:
    """Return whether a local folder is a chunked store (and not a folder of sections)."""
    return any((Path(path) / marker).is_file() for marker in _MARKERS)


def open_chunked(path: str | Path, *, dataset: str | None = None) -> Opened:
    """Open a Zarr, N5 or precomputed array as [z, y, x].

    An OME-Zarr group opens at its finest level. N5 and precomputed list their axes X, Y, Z and are
    turned round, their voxel sizes too; axes of time and channel must have size 1. The voxel size
    comes from OME multiscales, from dimension units, or from the attributes ``resolution`` and
    ``voxel_size`` (nm; Z, Y, X in Zarr and X, Y, Z in N5) and N5's ``pixelResolution``.

    Args:
        path: a folder or a URL.
        dataset: path of an array inside a group; by default the array itself or OME level 0.

    Raises:
        FileNotFoundError: nothing there is a store.
        ConnectionError: the remote store gives no answer in ``REMOTE_WAIT_S`` or refuses.
        ValueError: a group without multiscales and no ``dataset``, or axes other than Z, Y, X.
    """
    root = str(path).rstrip("/")
    name = root if dataset is None else f"{root}/{dataset.strip('/')}"
    metadata = _read_metadata(name)
    if not metadata:
        raise FileNotFoundError(f"{name}: no Zarr, N5 or precomputed store")
    multiscale = _multiscale(metadata)
    if multiscale is not None:
        return _open_multiscale(name, multiscale)
    driver, attributes = _driver(metadata, name)
    store = open_store(driver, name)
    names = _dimension_names(store, metadata, driver)
    voxel_nm = _unit_voxel(store, names) or _attribute_voxel(attributes, driver, name)
    return Opened(_lazy(store, names, name), name, voxel_nm)


def open_store(driver: str, name: str, *, write: bool = False) -> ts.TensorStore:
    """Open a store by tensorstore's name of its format.

    Args:
        driver: such as ``zarr3``.
        name: a folder or a URL.
        write: whether voxels may be written.

    Raises:
        ValueError: it cannot be opened.
    """
    try:
        spec = {"driver": driver, "kvstore": _kvstore(name)}
        return ts.open(spec, read=True, write=write).result()
    except Exception as error:  # tensorstore raises its own kinds, by cause
        raise ValueError(f"{name}: cannot be opened as {driver} ({error})") from error


def read_box(store: ts.TensorStore, box: Sequence[slice], *, name: str) -> np.ndarray:
    """Read a box of a store.

    Raises:
        ValueError: it cannot be read; the message names the store and the box.
    """
    try:
        return store[tuple(box)].read().result()
    except Exception as error:  # tensorstore raises its own kinds, by cause
        raise ValueError(f"{name}: [{box_text(box)}] cannot be read ({error})") from error


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
    if refused and not found:
        cause = refused[0]
        why = f"no answer in {REMOTE_WAIT_S:g} s" if isinstance(cause, TimeoutError) else cause
        raise ConnectionError(f"{name}: no metadata can be read ({why})") from cause
    return found


def _driver(metadata: dict[str, dict[str, Any]], name: str) -> tuple[str, dict[str, Any]]:
    """Return the tensorstore driver and the user's attributes."""
    if metadata.get("zarr.json", {}).get("node_type") == "array":
        return "zarr3", metadata["zarr.json"].get("attributes", {})
    if ".zarray" in metadata:
        return "zarr", metadata.get(".zattrs", {})
    if "dimensions" in metadata.get("attributes.json", {}):
        return "n5", metadata["attributes.json"]
    if "scales" in metadata.get("info", {}):
        return "neuroglancer_precomputed", metadata["info"]
    raise ValueError(
        f"{name}: a group without OME multiscales; choose an array in it with dataset= (--dataset)"
    )


def _dimension_names(
    store: ts.TensorStore, metadata: dict[str, dict[str, Any]], driver: str
) -> list[str]:
    """Return the axis letters of a store, in the store's own order."""
    if driver == "neuroglancer_precomputed":
        return list("xyzc")[: store.rank]
    if driver == "n5":
        return _default_names(store.rank)[::-1]
    names = metadata.get("zarr.json", {}).get("dimension_names") or []
    letters = [str(n).lower() if n else "" for n in names]
    return letters if set("zyx") <= set(letters) else _default_names(store.rank)


def _default_names(rank: int) -> list[str]:
    return list("tczyx")[-rank:] if 3 <= rank <= 5 else [f"axis{i}" for i in range(rank)]


def _lazy(store: ts.TensorStore, names: list[str], name: str) -> LazyArray:
    """Return the store as Z, Y, X from 0, other axes dropped if their size is 1."""
    if not set("zyx") <= set(names) or len(names) != store.rank:
        raise ValueError(f"{name}: shape {store.shape}, axes {names}; expected Z, Y and X")
    extra = [i for i, letter in enumerate(names) if letter not in ("z", "y", "x")]
    for i in extra:
        if store.shape[i] != 1:
            raise ValueError(
                f"{name}: shape {store.shape}, axes {names}; expected size 1 in {names[i]}"
            )
    dtype = check_dtype(store.dtype.numpy_dtype, name)
    view = store[ts.d[:].translate_to[0]]
    for i in reversed(extra):
        view = view[ts.d[i][0]]
    kept = [letter for letter in names if letter in ("z", "y", "x")]
    view = view[ts.d[tuple(kept.index(letter) for letter in "zyx")].transpose[:]]

    def read(box: Box) -> np.ndarray:
        return read_box(view, box, name=name)

    chunks = [size or 1 for size in view.chunk_layout.read_chunk.shape or ()]
    return LazyArray(view.shape, dtype, read, chunks=chunks or None)


def _multiscale(metadata: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first OME multiscale of a group: version 0.5 in zarr.json, before in .zattrs."""
    v3 = metadata.get("zarr.json", {}).get("attributes", {}).get("ome", {})
    scales = v3.get("multiscales") or metadata.get(".zattrs", {}).get("multiscales")
    return scales[0] if scales else None


def _open_multiscale(name: str, multiscale: dict[str, Any]) -> Opened:
    level = multiscale["datasets"][0]
    inner = f"{name}/{level['path']}"
    metadata = _read_metadata(inner)
    if not metadata:
        raise FileNotFoundError(f"{inner}: no array; the multiscales of {name} name it")
    store = open_store(_driver(metadata, inner)[0], inner)
    axes = multiscale.get("axes") or _default_names(store.rank)
    described = [a if isinstance(a, dict) else {"name": a} for a in axes]
    names = [str(a["name"]).lower() for a in described]
    scale = np.ones(len(names))
    known = False
    for owner in (level, multiscale):
        for change in owner.get("coordinateTransformations", []):
            if change.get("type") == "scale":
                scale, known = scale * np.asarray(change["scale"], float), True
    units = [unit_nm(a.get("unit", "")) for a in described]
    voxel_nm = None
    if known and all(n in names and units[names.index(n)] is not None for n in "zyx"):
        sizes = [scale[names.index(n)] * (units[names.index(n)] or 1.0) for n in "zyx"]
        voxel_nm = voxel_size(sizes, f"{name} multiscales")
    return Opened(_lazy(store, names, inner), inner, voxel_nm)


def _unit_voxel(store: ts.TensorStore, names: list[str]) -> tuple[float, float, float] | None:
    """Return the voxel size from units of the dimensions, if Z, Y and X all have one of length."""
    found = dict(zip(names, store.dimension_units, strict=True))
    sizes = []
    for letter in "zyx":
        unit = found.get(letter)
        scale = unit_nm(unit.base_unit) if unit is not None else None
        if unit is None or scale is None:
            return None
        sizes.append(unit.multiplier * scale)
    return sizes[0], sizes[1], sizes[2]


def _attribute_voxel(
    attributes: dict[str, Any], driver: str, name: str
) -> tuple[float, float, float] | None:
    """Return the voxel size from the attributes that other programs write beside an array."""
    scale: float | None = 1.0
    values = attributes.get("voxel_nm") or attributes.get("voxel_size")
    values = values or attributes.get("resolution")
    pixel = attributes.get("pixelResolution")
    if pixel:
        values = pixel.get("dimensions") if isinstance(pixel, dict) else pixel
        scale = unit_nm(pixel.get("unit", "um") if isinstance(pixel, dict) else "um")
    if not values or scale is None:
        return None
    sizes = [v * scale for v in voxel_size(values, f"{name} attributes")]
    return voxel_size(sizes[::-1] if driver == "n5" else sizes, name)
