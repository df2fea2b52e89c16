"""OME-Zarr images on a local disk: made, opened by tensorstore, and described.

An image is a folder with one array a level, ``0`` the finest, axes Z, Y, X with channels first
where there are any. NGFF 0.5 lies on Zarr 3, which can put many chunks into one file (a shard);
NGFF 0.4 lies on Zarr 2. A new image appears by one rename with all its metadata, so that a process
killed at any moment leaves either no image or one that opens.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorstore as ts

from densejax.data import ngff
from densejax.data.formats_chunked import is_remote, open_store
from densejax.data.geometry import voxel_size
from densejax.io import differences, publishing, write_text

Compression = Literal["zstd", "blosc", "none"]

ZARR2 = {
    "blosc": {"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 1, "blocksize": 0},
    "zstd": {"id": "zstd", "level": 1},
    "none": None,
}


def create_image(
    path: str | Path,
    *,
    shape: Sequence[int],
    dtype: Any,
    chunks: Sequence[int],
    voxel_nm: Sequence[float],
    version: ngff.Version = "0.5",
    kind: ngff.Kind = "image",
    offset: Sequence[float] = (0, 0, 0),
    channel_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    shards: Sequence[int] | None = None,
    compression: Compression = "blosc",
) -> None:
    """Make an OME-Zarr image with its finest level and no voxel written, or accept the same one.

    What is not written reads as ``attributes["not_predicted"]`` where that is given, else as 0.

    Args:
        path: the folder, such as ``OUT/labels.zarr``.
        shape: [z, y, x], or [c, z, y, x] with ``channel_names``, voxels.
        dtype: boolean, integer or float.
        chunks: [z, y, x] (one channel a chunk) or as many as ``shape``, voxels; cut to the shape.
        voxel_nm: (z, y, x), nm.
        version: of NGFF: ``0.5`` on Zarr 3 or ``0.4`` on Zarr 2.
        kind: ``labels`` for integers that name classes or objects.
        offset: (z, y, x), voxels from the origin of the volume that this one is cut from.
        channel_names: c names of the leading axis; needed for [c, z, y, x].
        class_names: names of the values 0, 1, ... of a label image.
        colours: ``#RRGGBB`` for each class or channel; by default we choose hues.
        attributes: anything JSON can hold; kept under ``densejax``.
        shards: [z, y, x] or as many as ``shape``, whole multiples of ``chunks``; only with 0.5.
        compression: ``zstd`` alone, ``blosc`` (zstd behind a shuffle of bytes), or ``none``.

    Raises:
        FileExistsError: something else is there, or an image whose metadata differ; what differs
            is named. Levels that a pyramid added do not count as a difference.
        ValueError: a shape, chunk, shard, voxel size, name or colour that does not fit.
    """
    path = _local(path)
    shape = _sizes(shape, f"{path}: shape")
    rank = 4 if channel_names is not None else 3
    if len(shape) != rank or (channel_names is not None and len(channel_names) != shape[0]):
        raise ValueError(
            f"{path}: shape {shape} with channel_names {channel_names}; expected [z, y, x], or "
            "[c, z, y, x] and c names"
        )
    if version not in ngff.VERSIONS:
        raise ValueError(f"{path}: NGFF version {version!r}; expected one of {ngff.VERSIONS}")
    if colours is not None and len(colours) != len(class_names or channel_names or ()):
        raise ValueError(
            f"{path}: {len(colours)} colours; expected one for each class or channel name"
        )
    metadata = ngff.image_metadata(
        path.name.removesuffix(".zarr"),
        version=version,
        kind=kind,
        voxel_nm=voxel_size(voxel_nm, str(path)),
        offset=offset,
        channel_names=channel_names,
        class_names=class_names,
        colours=colours,
        attributes=attributes or {},
    )
    array = _array_metadata(
        path, version, shape, dtype, chunks, shards, compression, metadata[ngff.OURS]
    )
    if path.exists():
        _check_same(path, metadata, array)
        return
    _publish(path, metadata, array)


def open_level(path: str | Path, *, level: int = 0, write: bool = False) -> ts.TensorStore:
    """Open one level of an OME-Zarr image.

    Args:
        path: the image's folder.
        level: 0 is the finest.
        write: whether voxels may be written; reading always works.

    Returns:
        The array as stored, [z, y, x] or [c, z, y, x].

    Raises:
        FileNotFoundError: there is no OME-Zarr image, or it has no such level.
        ValueError: the array cannot be opened.
    """
    datasets = read_attributes(path)["multiscales"][0]["datasets"]
    if not 0 <= level < len(datasets):
        raise FileNotFoundError(
            f"{path}: no level {level}; expected 0..{len(datasets) - 1} (pyramids add levels)"
        )
    return open_array(Path(path) / datasets[level]["path"], write=write)


def open_array(folder: str | Path, *, write: bool = False) -> ts.TensorStore:
    """Open a Zarr 2 or 3 array by its folder.

    Raises:
        FileNotFoundError: the folder holds no array.
        ValueError: the array cannot be opened.
    """
    folder = _local(folder)
    driver = "zarr3" if (folder / "zarr.json").is_file() else "zarr"
    if driver == "zarr" and not (folder / ".zarray").is_file():
        raise FileNotFoundError(f"{folder}: no Zarr array")
    return open_store(driver, str(folder), write=write)


def read_attributes(path: str | Path) -> dict[str, Any]:
    """Read an image's metadata, the same for both versions of NGFF.

    Returns:
        ``version``, ``multiscales``, and where they are there ``image-label`` and ``omero``, as
        NGFF has them, and ``densejax`` (``class_names``, ``not_predicted``, ...), ours.

    Raises:
        FileNotFoundError: there is no OME-Zarr image.
        ValueError: the metadata are no JSON or have no multiscales.
    """
    path = _local(path)
    newer, older = path / "zarr.json", path / ".zattrs"
    source = newer if newer.is_file() else older
    if not source.is_file():
        raise FileNotFoundError(f"{path}: no OME-Zarr image (neither zarr.json nor .zattrs)")
    try:
        held = json.loads(source.read_text())
        found = ngff.from_file(held.get("attributes", {}) if source == newer else held)
    except ValueError as error:
        raise ValueError(f"{source}: not valid JSON ({error})") from error
    if not found.get("multiscales"):
        raise ValueError(f"{source}: no multiscales; expected the group of an OME-Zarr image")
    return found


def update_attributes(path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Replace an image's metadata, whole or not at all.

    Args:
        path: the image's folder.
        metadata: as ``read_attributes`` returns them, changed.
    """
    path = _local(path)
    for name, text in _group_files(metadata).items():
        write_text(path / name, text)


def create_array(folder: str | Path, like: ts.TensorStore, *, shape: Sequence[int]) -> None:
    """Make an array of another shape that is chunked, compressed and filled like a given one.

    Args:
        folder: of the new array; one that is there already stays as it is.
        like: a level, such as ``open_level`` returns.
        shape: of the new array, voxels.
    """
    folder = _local(folder)
    held = like.spec().to_json()["metadata"]
    name = "zarr.json" if "node_type" in held else ".zarray"
    if (folder / name).is_file():
        return
    with contextlib.suppress(FileExistsError), publishing(folder) as partial:
        (partial / name).write_text(_json(held | {"shape": [int(s) for s in shape]}))


def _local(path: str | Path) -> Path:
    if is_remote(str(path)):
        raise ValueError(f"{path}: expected a folder on a local disk; open_volume reads URLs")
    return Path(path)


def _sizes(values: Sequence[int], name: str) -> list[int]:
    found = [int(v) for v in values]
    if not found or min(found) < 1 or any(v != f for v, f in zip(values, found, strict=True)):
        raise ValueError(f"{name} {tuple(values)}: expected whole numbers from 1 on")
    return found


def _array_metadata(
    path: Path,
    version: str,
    shape: list[int],
    dtype: Any,
    chunks: Sequence[int],
    shards: Sequence[int] | None,
    compression: Compression,
    ours: Mapping[str, Any],
) -> dict[str, Any]:
    """The metadata file of level 0, of Zarr 2 or 3: more than tensorstore's own says."""
    kind = np.dtype(dtype)
    if kind.kind not in "buif" or kind.itemsize > 8:
        raise ValueError(f"{path}: dtype {kind} is not supported; expected bool, integer or float")
    inner = _with_channel(_sizes(chunks, f"{path}: chunks"), shape, f"{path}: chunks")
    cut = [min(c, s) for c, s in zip(inner, shape, strict=True)]
    fill: Any = ours.get("not_predicted", 0)
    fill = bool(fill) if kind.kind == "b" else float(fill) if kind.kind == "f" else int(fill)
    if version == "0.4":
        if shards is not None:
            raise ValueError(f"{path}: shards {tuple(shards)} need Zarr 3, that is version='0.5'")
        return {
            "zarr_format": 2,
            "shape": shape,
            "chunks": cut,
            "dtype": kind.newbyteorder("<").str,
            "fill_value": fill,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
            "compressor": ZARR2[compression],
        }
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs = [{"name": "bytes"} if kind.itemsize == 1 else little, *_codecs(compression, kind)]
    if shards is not None:
        outer = _with_channel(_sizes(shards, f"{path}: shards"), shape, f"{path}: shards")
        if any(o % i for o, i in zip(outer, inner, strict=True)):
            raise ValueError(
                f"{path}: shards {outer}; expected whole multiples of the chunks {inner}"
            )
        inside = {
            "chunk_shape": inner,
            "codecs": codecs,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        cut, codecs = outer, [{"name": "sharding_indexed", "configuration": inside}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": kind.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": cut}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "dimension_names": list("czyx")[-len(shape) :],
        "attributes": {},
        "codecs": codecs,
    }


def _with_channel(sizes: list[int], shape: list[int], name: str) -> list[int]:
    found = [1] * (len(shape) - len(sizes)) + sizes if len(sizes) == 3 else sizes
    if len(found) != len(shape):
        raise ValueError(f"{name} {sizes}: expected 3 or {len(shape)} numbers for shape {shape}")
    return found


def _codecs(compression: Compression, dtype: np.dtype) -> list[dict[str, Any]]:
    if compression == "blosc":
        settings = {"cname": "zstd", "clevel": 1, "blocksize": 0, "typesize": dtype.itemsize}
        settings["shuffle"] = "shuffle" if dtype.itemsize > 1 else "noshuffle"
        return [{"name": "blosc", "configuration": settings}]
    if compression == "zstd":
        return [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}]
    return []


def _group_files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of a group by name; the one that readers look for first comes last."""
    attributes = ngff.to_file(metadata)
    if metadata["version"] == "0.4":
        return {".zgroup": _json({"zarr_format": 2}), ".zattrs": _json(attributes)}
    return {"zarr.json": _json({"zarr_format": 3, "node_type": "group", "attributes": attributes})}


def _publish(path: Path, metadata: dict[str, Any], array: dict[str, Any]) -> None:
    name = "zarr.json" if array["zarr_format"] == 3 else ".zarray"
    try:
        with publishing(path) as partial:
            (partial / "0").mkdir()
            (partial / "0" / name).write_text(_json(array))
            for file, text in _group_files(metadata).items():
                (partial / file).write_text(text)
    except FileExistsError:  # another process was faster: its image must be the same
        _check_same(path, metadata, array)


def _check_same(path: Path, metadata: dict[str, Any], array: dict[str, Any]) -> None:
    try:
        held = read_attributes(path)
        name = "zarr.json" if array["zarr_format"] == 3 else ".zarray"
        held_array = json.loads((path / "0" / name).read_text())
    except (OSError, ValueError) as error:
        raise FileExistsError(f"{path} exists and is no image of ours ({error})") from error
    multiscale = held["multiscales"][0]
    # A pyramid adds levels and the way they were made.
    held["multiscales"] = [
        {key: value for key, value in multiscale.items() if key != "type"}
        | {"datasets": multiscale["datasets"][:1]}
    ]
    wanted = {**metadata, "level 0": array}
    if differing := differences(held | {"level 0": held_array}, wanted):
        shown = "; ".join(differing[:5])
        raise FileExistsError(f"{path} exists and is another image: {shown}. Name another folder.")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
