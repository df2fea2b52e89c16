"""Volumes kept as pictures: a TIFF stack, or a folder with one TIFF or PNG file a section."""

import re
import struct
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from densejax.data.formats import Box, LazyArray, Opened, check_dtype, natural_key, unit_nm

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
PNG_SUFFIXES = (".png",)

_PNG_DTYPES = {"1": np.uint8, "L": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "I": np.uint16}


def read_image(path: str | Path) -> np.ndarray:
    """Read one grey TIFF page or PNG, [y, x], uint8 or the file's own dtype.

    A 1-bit PNG comes back as uint8 0 and 255, so that 1-bit and 8-bit masks are alike.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, holds several pages, or is not grey.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    if path.suffix.lower() in PNG_SUFFIXES:
        return _read_png(path)
    opened = open_tiff(path)
    if opened.array.shape[0] != 1:
        raise ValueError(f"{path}: {opened.array.shape[0]} pages; expected a single section")
    return opened.array[0]


def open_tiff(path: str | Path) -> Opened:
    """Open a TIFF file as a [z, y, x] array, one page a section.

    Uncompressed stacks are mapped into memory; others are decoded page by page as they are read.
    The voxel size is taken from OME or ImageJ metadata where all three sizes have a unit.

    Raises:
        ValueError: not a TIFF, cut short, pages that differ in size or dtype, several channels.
    """
    path = Path(path)
    try:
        with tifffile.TiffFile(path) as tif:
            shape, dtype = _tiff_layout(tif, path)
            offset = _contiguous_offset(tif, shape, dtype)
            order = tif.byteorder
            voxel_nm = _ome_voxel(tif) or _imagej_voxel(tif)
    except (tifffile.TiffFileError, struct.error, IndexError, KeyError) as error:
        raise ValueError(f"{path}: not a readable TIFF file ({error})") from error
    if offset is None:
        array = LazyArray(shape, dtype, lambda box: _read_pages(path, box), chunks=(1, *shape[1:]))
    else:
        mapped = np.memmap(path, dtype.newbyteorder(order), "r", offset, shape)
        array = LazyArray(shape, dtype, lambda box: np.array(mapped[box]))
    return Opened(array, str(path), voxel_nm)


def open_folder(path: str | Path) -> Opened:
    """Open a folder of single-section TIFF or PNG files in numeric order as [z, y, x].

    Other files in the folder are ignored. A gap in otherwise consecutive numbers warns, because a
    missing section shifts everything after it.

    Raises:
        FileNotFoundError: the folder holds no TIFF or PNG file.
        ValueError: both kinds are present, or a section differs in size or dtype from the first.
    """
    path = Path(path)
    files = list_sections(path)
    headers = [_header(file) for file in files]
    shape, dtype = headers[0]
    for file, found in zip(files, headers, strict=True):
        if found != headers[0]:
            raise ValueError(
                f"{file}: section is {found[0]} {found[1]}; expected {shape} {dtype} as {files[0]}"
            )
    array = LazyArray(
        (len(files), *shape),
        dtype,
        lambda box: _read_sections(files, box),
        chunks=(1, *shape),
    )
    return Opened(array, str(path), None)


def list_sections(folder: str | Path) -> list[Path]:
    """Return the TIFF or PNG files of a folder in numeric order.

    Raises:
        FileNotFoundError: no such folder, or none in it.
        ValueError: TIFF and PNG files are mixed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    names = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    tiffs = [p for p in names if p.suffix.lower() in TIFF_SUFFIXES]
    pngs = [p for p in names if p.suffix.lower() in PNG_SUFFIXES]
    if tiffs and pngs:
        raise ValueError(
            f"{folder}: {len(tiffs)} TIFF and {len(pngs)} PNG files; expected one kind of section"
        )
    if not tiffs and not pngs:
        raise FileNotFoundError(f"{folder}: no TIFF or PNG file; expected one file a section")
    files = sorted(tiffs or pngs, key=lambda p: natural_key(p.name))
    _warn_gaps(folder, files)
    return files


def _warn_gaps(folder: Path, files: list[Path]) -> None:
    numbers = [re.findall(r"\d+", p.stem) for p in files]
    if not all(numbers):
        return
    places = [int(n[-1]) for n in numbers]
    steps = [b - a for a, b in pairwise(places)]
    # A constant step of ten is a naming habit; a lone jump among steps of one is a lost section.
    if 1 in steps and max(steps) > 1:
        at = next(i for i, s in enumerate(steps) if s > 1)
        warnings.warn(
            f"{folder}: sections jump from {files[at].name} to {files[at + 1].name}", stacklevel=4
        )


def _header(path: Path) -> tuple[tuple[int, int], np.dtype]:
    if path.suffix.lower() in PNG_SUFFIXES:
        try:
            with Image.open(path) as image:
                return (image.height, image.width), _png_dtype(image, path)
        except OSError as error:
            raise ValueError(f"{path}: not a readable PNG file ({error})") from error
    array = open_tiff(path).array
    if array.shape[0] != 1:
        raise ValueError(f"{path}: {array.shape[0]} pages; expected a single section")
    return (array.shape[1], array.shape[2]), array.dtype


def _png_dtype(image: Image.Image, path: Path) -> np.dtype:
    if image.mode not in _PNG_DTYPES:
        raise ValueError(f"{path}: PNG of mode {image.mode}; expected grey of 1, 8 or 16 bits")
    return np.dtype(_PNG_DTYPES[image.mode])


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            dtype = _png_dtype(image, path)
            grey = image.convert("L") if image.mode == "1" else image
            return np.asarray(grey).astype(dtype)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable PNG file ({error})") from error


def _read_sections(files: list[Path], box: Box) -> np.ndarray:
    chosen = files[box[0]]
    if not chosen:
        shape = read_image(files[0])[box[1:]].shape
        return np.empty((0, *shape))
    return np.stack([read_image(file)[box[1:]] for file in chosen])


def _read_pages(path: Path, box: Box) -> np.ndarray:
    with tifffile.TiffFile(path) as tif:
        pages = []
        for z in range(box[0].start, box[0].stop):
            try:
                pages.append(tif.pages[z].asarray()[box[1:]])
            except Exception as error:  # every codec raises its own kind
                raise ValueError(f"{path}: page {z} cannot be decoded ({error})") from error
        if pages:
            return np.stack(pages)
        return np.empty((0, *tif.pages[0].asarray()[box[1:]].shape))


def _tiff_layout(tif: tifffile.TiffFile, path: Path) -> tuple[tuple[int, int, int], np.dtype]:
    """Return shape and dtype after checking that every page is whole and alike."""
    first = tif.pages[0]
    size = path.stat().st_size
    for z, page in enumerate(tif.pages):
        _check_page(page, first, f"{path}: page {z}")
        ends = [a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if max(ends, default=0) > size:
            raise ValueError(
                f"{path}: page {z} ends at byte {max(ends)}, the file has {size}; it is cut short"
            )
    _check_chain(tif, path)
    dtype = check_dtype(first.dtype, str(path))
    height, width = first.shape
    series = tif.series[0]
    _check_axes(series, path)
    depth = len(tif.pages)
    if depth == 1 and len(series.shape) == 3:
        # ImageJ writes stacks above 4 GB as one page followed by the rest of the bytes.
        depth = int(series.shape[0])
        if (series.dataoffset or 0) + series.nbytes > size:
            raise ValueError(
                f"{path}: {depth} sections take {series.nbytes} bytes, the file has {size}; "
                "it is cut short"
            )
    stated = int((tif.imagej_metadata or {}).get("images", depth)) if tif.is_imagej else depth
    if stated != depth:
        raise ValueError(
            f"{path}: {depth} sections found, ImageJ's description says {stated}; it is cut short"
        )
    return (depth, height, width), dtype


def _check_page(page: Any, first: Any, name: str) -> None:
    if len(page.shape) != 2:
        # A common accident: writers take a stack of 3 or 4 sections for the planes of one colour.
        hint = " (a stack of 3 or 4 sections is to be written with photometric='minisblack')"
        hint = hint if page.shape[0] in (3, 4) else ""
        raise ValueError(f"{name} has shape {page.shape}; expected grey sections (y, x){hint}")
    if page.shape != first.shape or page.dtype != first.dtype:
        raise ValueError(
            f"{name} is {page.shape} {page.dtype}; expected {first.shape} {first.dtype} as page 0"
        )


def _check_chain(tif: tifffile.TiffFile, path: Path) -> None:
    """A reader stops quietly where the list of pages points outside the file; this does not."""
    form, last = tif.tiff, tif.pages[-1]
    handle = tif.filehandle
    handle.seek(last.offset)
    (count,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(last.offset + form.tagnosize + count * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))
    if following:
        raise ValueError(
            f"{path}: page {len(tif.pages)} should start at byte {following}, "
            f"the file has {path.stat().st_size} bytes; it is cut short or damaged"
        )


def _check_axes(series: Any, path: Path) -> None:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    if sizes.get("C", 1) > 1 or sizes.get("S", 1) > 1:
        raise ValueError(f"{path}: axes {series.axes} {series.shape}; expected a single channel")
    if sum(n > 1 for n in series.shape[:-2]) > 1:
        raise ValueError(f"{path}: axes {series.axes} {series.shape}; expected Z, Y, X")


def _contiguous_offset(
    tif: tifffile.TiffFile, shape: tuple[int, int, int], dtype: np.dtype
) -> int | None:
    """Return where the voxels start if they lie uncompressed in one run, else None."""
    series = tif.series[0]
    if dtype.kind == "b" or int(np.prod(series.shape)) != int(np.prod(shape)):
        return None
    return series.dataoffset


def _imagej_voxel(tif: tifffile.TiffFile) -> tuple[float, float, float] | None:
    meta = tif.imagej_metadata if tif.is_imagej else None
    scale = unit_nm(meta.get("unit", "")) if meta else None
    if not meta or scale is None or "spacing" not in meta:
        return None
    x, y = tif.pages[0].resolution
    if not (x > 0 and y > 0):
        return None
    return float(meta["spacing"]) * scale, scale / float(y), scale / float(x)


def _ome_voxel(tif: tifffile.TiffFile) -> tuple[float, float, float] | None:
    if not tif.is_ome or tif.ome_metadata is None:
        return None
    image = tifffile.xml2dict(tif.ome_metadata).get("OME", {}).get("Image", {})
    image = image[0] if isinstance(image, list) else image
    pixels = image.get("Pixels", {})
    sizes = []
    for axis in "ZYX":
        scale = unit_nm(pixels.get(f"PhysicalSize{axis}Unit", "um"))  # OME's default is the um
        value = pixels.get(f"PhysicalSize{axis}")
        if value is None or scale is None:
            return None
        sizes.append(float(value) * scale)
    return sizes[0], sizes[1], sizes[2]
