"""Volumes kept as pictures: a TIFF stack, or a folder with one TIFF or PNG file a section."""

import contextlib
import html
import json
import math
import re
import struct
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from densejax.data.formats import check_dtype, natural_key
from densejax.data.geometry import IN_FILE, Geometry, Opened, Voxel, present, unit_nm

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
PNG_SUFFIXES = (".png",)
_OTHER_PICTURES = (".jpg", ".jpeg", ".jp2", ".bmp", ".gif", ".webp", ".pgm", ".mrc", ".dm3", ".dm4")

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
    array = present(open_tiff(path, alone=True))
    if array.shape[0] != 1:
        raise ValueError(f"{path}: {array.shape[0]} pages; expected a single section")
    return array[0]


def open_tiff(path: str | Path, *, dataset: str | None = None, alone: bool = False) -> Opened:
    """Open a TIFF file, its axes as its series states them; unnamed pages are sections.

    Uncompressed stacks are mapped into memory; others are decoded page by page as they are read.
    An OME-TIFF of several files is read through its set. The voxel size is taken from OME, ImageJ
    or tifffile metadata where all three sizes have a unit.

    Args:
        path: the file.
        dataset: number of the image in it, for a file of several.
        alone: read the pages of this file only, whatever set it belongs to.

    Raises:
        ValueError: not a TIFF, cut short, pages that differ in size or dtype, several images and
            no ``dataset``, or a file of its set is missing.
    """
    path = Path(path)
    try:
        with tifffile.TiffFile(path, is_ome=False if alone else None) as tif:
            return _open_tiff(tif, path, dataset)
    except (tifffile.TiffFileError, struct.error, IndexError, KeyError) as error:
        raise ValueError(f"{path}: not a readable TIFF file ({error})") from error


def open_folder(path: str | Path) -> Opened:
    """Open a folder of single-section TIFF or PNG files in numeric order as [z, y, x].

    Files that are no pictures are ignored. A gap in otherwise consecutive numbers warns, because a
    missing section shifts everything after it. An OME-TIFF of one file a section is read in the
    order that it states.

    Raises:
        FileNotFoundError: the folder holds no TIFF or PNG file.
        ValueError: several kinds of picture are present, two files have the number of one section,
            or a section differs in size or dtype from the first.
    """
    path = Path(path)
    files = list_sections(path)
    numbers = section_numbers(path, files)
    voxel_nm = None
    if files[0].suffix.lower() in TIFF_SUFFIXES:
        if (whole := _open_set(path, files)) is not None:
            return whole
        with contextlib.suppress(ValueError):  # said of the section below
            voxel_nm = open_tiff(files[0], alone=True).geometry.voxel_nm
    headers = [_header(file) for file in files]
    shape, dtype = headers[0]
    for file, found in zip(files, headers, strict=True):
        if found != headers[0]:
            raise ValueError(
                f"{file}: section is {found[0]} {found[1]}; expected {shape} {dtype} as {files[0]}"
            )
    geometry = Geometry(tuple("zyx"), voxel_nm, sections=numbers)

    def read(box: tuple[slice, ...]) -> np.ndarray:
        chosen = files[box[0]]
        if not chosen:
            return np.empty((0, *(s.stop - s.start for s in box[1:])))
        return np.stack([read_image(file)[box[1:]] for file in chosen])

    return Opened(str(path), (len(files), *shape), dtype, read, geometry, (1, *shape))


def has_sections(folder: Path) -> bool:
    """Return whether a folder holds TIFF or PNG files."""
    return any(p.suffix.lower() in TIFF_SUFFIXES + PNG_SUFFIXES for p in folder.iterdir())


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
    strange = [p for p in names if p.suffix.lower() in _OTHER_PICTURES]
    if strange:
        raise ValueError(
            f"{folder}: {len(tiffs or pngs)} sections and {len(strange)} other pictures, such as "
            f"{strange[0].name}; expected one kind of section (those would be left out)"
        )
    files = sorted(tiffs or pngs, key=lambda p: natural_key(p.name))
    _warn_gaps(folder, files, section_numbers(folder, files))
    return files


def section_numbers(folder: Path, files: Sequence[Path]) -> tuple[int, ...] | None:
    """Return the number of each section from its file's name, or None where names have none.

    It is the number that differs between the names; the last one where several do.

    Raises:
        ValueError: two files have the same number, or names hold two numbers of which each
            combination is there, such as section and channel.
    """
    found = [[int(n) for n in re.findall(r"\d+", file.stem)] for file in files]
    if len(files) < 2 or not all(found):
        return None
    if len({re.sub(r"\d+", "0", file.stem) for file in files}) == 1:
        columns = [c for c in zip(*found, strict=True) if len(set(c)) > 1]
        distinct = [c for c in columns if len(set(c)) == len(files)]
        if distinct:
            return tuple(distinct[-1])
        if math.prod(len(set(c)) for c in columns) == len(files) and len(columns) > 1:
            raise ValueError(
                f"{folder}: names such as {files[0].name} and {files[1].name} hold "
                f"{' x '.join(str(len(set(c))) for c in columns)} numbers; expected one file a "
                "section, and other channels or times in other folders"
            )
        if len(columns) > 1:
            return None
    numbers = [row[-1] for row in found]
    first: dict[int, Path] = {}
    for file, number in zip(files, numbers, strict=True):
        if (other := first.setdefault(number, file)) is not file:
            raise ValueError(
                f"{folder}: {other.name} and {file.name} are both section {number}; expected one "
                "file a section: move the copy away, or rename one"
            )
    return tuple(numbers)


def _warn_gaps(folder: Path, files: Sequence[Path], places: Sequence[int] | None) -> None:
    steps = [b - a for a, b in pairwise(places or ())]
    # A constant step of ten is a naming habit; a lone jump among steps of one is a lost section.
    if 1 in steps and max(steps) > 1:
        at = next(i for i, s in enumerate(steps) if s > 1)
        warnings.warn(
            f"{folder}: sections jump from {files[at].name} to {files[at + 1].name}", stacklevel=5
        )


def _header(path: Path) -> tuple[tuple[int, int], np.dtype]:
    if path.suffix.lower() in PNG_SUFFIXES:
        try:
            with Image.open(path) as image:
                return (image.height, image.width), _png_dtype(image, path)
        except OSError as error:
            raise ValueError(f"{path}: not a readable PNG file ({error})") from error
    array = present(open_tiff(path, alone=True))
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


def _open_tiff(tif: tifffile.TiffFile, path: Path, dataset: str | None) -> Opened:
    size = path.stat().st_size
    for z, page in enumerate(tif.pages):
        ends = [a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if max(ends, default=0) > size:
            raise ValueError(
                f"{path}: page {z} ends at byte {max(ends)}, the file has {size}; it is cut short"
            )
    _check_chain(tif, path)
    _check_set(tif, path)
    series, number, pages = _choose_series(tif, path, dataset)
    if None in pages:
        raise ValueError(
            f"{path}: plane {pages.index(None)} of {len(pages)} is in none of its files"
        )
    for z, page in enumerate(pages):
        _check_page(page, pages[0], f"{path}: page {z}")
    dtype = check_dtype(pages[0].dtype, str(path))
    axes, shape = series.axes.lower(), tuple(series.shape)
    if len(pages) != len(series.pages):  # pages written one by one
        axes, shape = "zyx", (len(pages), *pages[0].shape)
    places = [(Path(page.parent.filehandle.path), page.index) for page in pages]
    plain = shape == tuple(series.shape) and dtype.kind != "b"
    start = series.dataoffset if plain and len({file for file, _ in places}) == 1 else None
    if start is not None and start + series.nbytes > places[0][0].stat().st_size:
        raise ValueError(
            f"{path}: {shape[0]} sections take {series.nbytes} bytes, the file has {size}; it is "
            "cut short"
        )
    depth = math.prod(shape[:-2])
    stated = int((tif.imagej_metadata or {}).get("images", depth)) if tif.is_imagej else depth
    if stated != depth:
        raise ValueError(
            f"{path}: {depth} sections found, ImageJ's description says {stated}; it is cut short"
        )
    if start is None and (shape[-2:] != pages[0].shape or depth != len(pages)):
        raise ValueError(
            f"{path}: {len(pages)} pages of {pages[0].shape} for axes {series.axes} {shape}; "
            "expected one page a section"
        )
    letters, full = _with_z(axes, shape, path)
    voxel_nm = _ome_voxel(tif, number) or _imagej_voxel(tif) or _shaped_voxel(tif)
    levels = len(getattr(series, "levels", ()))
    level = f"level 0 of {levels}" if levels > 1 and len(series.pages) == len(pages) else ""
    name = str(path) if dataset is None else f"{path}{IN_FILE}{dataset}"
    geometry = Geometry(letters, voxel_nm, level=level)
    if start is not None:
        mapped = np.memmap(places[0][0], dtype.newbyteorder(tif.byteorder), "r", start, full)
        return Opened(name, full, dtype, lambda box: np.array(mapped[box]), geometry)
    chunks = (*(1 for _ in full[:-2]), *full[-2:])
    return Opened(name, full, dtype, lambda box: _read_pages(places, full, box), geometry, chunks)


def _choose_series(
    tif: tifffile.TiffFile, path: Path, dataset: str | None
) -> tuple[Any, int, list[Any]]:
    """The image that is asked for or the only one, its number, and its pages."""
    held = tif.series
    if dataset is not None:
        if dataset not in [str(i) for i in range(len(held))]:
            raise ValueError(f"{path}: no image {dataset!r}; it holds {_images(held)}")
        return held[int(dataset)], int(dataset), list(held[int(dataset)].pages)
    if len(held) == 1:
        return held[0], 0, list(held[0].pages)
    if not tif.is_ome and all(len(series.pages) == 1 and series.ndim <= 3 for series in held):
        return held[0], 0, list(tif.pages)
    raise ValueError(
        f"{path}: {len(held)} images in one file ({_images(held)}); choose one as {path}{IN_FILE}0"
    )


def _images(held: Sequence[Any]) -> str:
    return ", ".join(f"{i}: {s.axes} {tuple(s.shape)} {s.dtype}" for i, s in enumerate(held))


def _with_z(
    axes: str, shape: tuple[int, ...], path: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Axes with one named z: of unnamed ones the only long one is, and a page is one section."""
    if "z" in axes:
        return tuple(axes), shape
    long = [
        i for i, (a, n) in enumerate(zip(axes, shape, strict=True)) if a not in "yxcs" and n > 1
    ]
    if not long:
        return ("z", *axes), (1, *shape)
    if len(long) > 1:
        return tuple(axes), shape
    if axes[long[0]] == "t":
        warnings.warn(
            f"{path}: axes {axes.upper()} {shape}: the {shape[long[0]]} time points are taken for "
            "sections",
            stacklevel=5,
        )
    return tuple("z" if i == long[0] else a for i, a in enumerate(axes)), shape


def _read_pages(
    places: Sequence[tuple[Path, int]], shape: Sequence[int], box: tuple[slice, ...]
) -> np.ndarray:
    numbers = np.arange(len(places)).reshape(shape[:-2])[box[:-2]]
    pages = []
    with contextlib.ExitStack() as stack:
        tifs: dict[Path, tifffile.TiffFile] = {}
        for z in numbers.ravel().tolist():
            path, index = places[z]
            try:
                if path not in tifs:
                    tifs[path] = stack.enter_context(tifffile.TiffFile(path, is_ome=False))
                pages.append(tifs[path].pages[index].asarray()[box[-2:]])
            except Exception as error:  # every codec raises its own kind
                raise ValueError(f"{path}: page {index} cannot be decoded ({error})") from error
    spans = [len(range(*s.indices(n))) for s, n in zip(box[-2:], shape[-2:], strict=True)]
    found = np.stack(pages) if pages else np.empty((0, *spans))
    return found.reshape((*numbers.shape, *spans))


def _ome_xml(tif: tifffile.TiffFile) -> str:
    held = tif.pages.first.description or ""
    return held if "<OME" in held[:4096] or "<ome:OME" in held[:4096] else ""


def _set_files(xml: str) -> list[str]:
    """The files of an OME-TIFF set, in the order in which its description names them."""
    return list(dict.fromkeys(html.unescape(n) for n in re.findall(r'FileName="([^"]+)"', xml)))


def _check_set(tif: tifffile.TiffFile, path: Path) -> None:
    if not tif.is_ome:
        return
    xml = _ome_xml(tif)
    if "<BinaryOnly" in xml:
        raise ValueError(
            f"{path}: one file of an OME-TIFF set whose description lies in another file; open "
            "that one, or the folder of its sections"
        )
    names = _set_files(xml)
    lost = [name for name in names if not (path.parent / name).is_file()]
    if len(names) > 1 and lost:
        raise ValueError(
            f"{path}: one file of a set of {len(names)}, of which {len(lost)} are not in "
            f"{path.parent}, such as {lost[0]}"
        )


def _open_set(folder: Path, files: Sequence[Path]) -> Opened | None:
    """Open the OME-TIFF set that a folder holds, or None where it is none."""
    try:
        with tifffile.TiffFile(files[0]) as tif:
            names = _set_files(_ome_xml(tif)) if tif.is_ome else []
    except (tifffile.TiffFileError, struct.error, IndexError, KeyError):
        return None
    there = {file.name for file in files}
    if len(names) < 2 or not there & set(names):
        return None
    if more := sorted(there - set(names), key=natural_key):
        raise ValueError(
            f"{folder}: {more[0]} is none of the {len(names)} files of the OME-TIFF set that "
            f"{files[0].name} belongs to; expected one set a folder"
        )
    opened = open_tiff(files[0])
    return replace(opened, name=str(folder))


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


def _imagej_voxel(tif: tifffile.TiffFile) -> Voxel | None:
    meta = tif.imagej_metadata if tif.is_imagej else None
    scale = unit_nm(meta.get("unit", "")) if meta else None
    return _resolved(tif, meta.get("spacing"), scale, scale) if meta else None


def _shaped_voxel(tif: tifffile.TiffFile) -> Voxel | None:
    """Of tifffile's own description, with the resolution in its unit, in inches, or in cm."""
    try:
        meta = json.loads(tif.pages.first.description or "")
    except ValueError:
        return None
    if not isinstance(meta, dict):
        return None
    unit = unit_nm(meta.get("unit", ""))
    plane = {2: unit_nm("inch"), 3: unit_nm("cm")}.get(int(tif.pages[0].resolutionunit), unit)
    return _resolved(tif, meta.get("spacing"), unit, plane)


def _resolved(
    tif: tifffile.TiffFile, spacing: Any, unit: float | None, plane: float | None
) -> Voxel | None:
    """(z, y, x) in nm of a spacing and of the pixels in one ``plane`` unit that tags state."""
    x, y = tif.pages[0].resolution
    if spacing is None or unit is None or plane is None or not (x > 0 and y > 0):
        return None
    return float(spacing) * unit, plane / float(y), plane / float(x)


def _ome_voxel(tif: tifffile.TiffFile, number: int) -> Voxel | None:
    xml = _ome_xml(tif)
    if not xml:
        return None
    try:
        image = tifffile.xml2dict(xml).get("OME", {}).get("Image", {})
        pixels = (image[number] if isinstance(image, list) else image).get("Pixels", {})
    except Exception:  # not XML, or without images: it states nothing
        return None
    sizes = []
    for axis in "ZYX":
        scale = unit_nm(pixels.get(f"PhysicalSize{axis}Unit", "um"))  # OME's default is the um
        value = pixels.get(f"PhysicalSize{axis}")
        if value is None or scale is None:
            return None
        sizes.append(float(value) * scale)
    return sizes[0], sizes[1], sizes[2]
