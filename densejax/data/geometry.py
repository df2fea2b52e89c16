"""Where an array lies and how its axes go: one record that every format's reader fills.

A reader states what its file says in a ``Geometry`` and hands the array over as it is stored;
``present`` shows any of them as z, y, x, or refuses it. No other module turns axes round.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from densejax.data.formats import Box, LazyArray, check_dtype

Voxel = tuple[float, float, float]

LEAST_NM, MOST_NM = 0.1, 1e5  # no microscope's voxel is smaller or larger: the unit is another
IN_FILE = "::"  # between a file and the array in it, such as truth.h5::volumes/labels

_UNITS_NM = {
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-3),
    **dict.fromkeys(("angstrom", "å", "ångström"), 0.1),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1.0),
    # Micro sign, Greek mu, and the escape that ImageJ writes.
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "micrometer", "micrometre"), 1e3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e7),
    **dict.fromkeys(("in", "inch", "inche"), 2.54e7),  # without the s of the plural
    **dict.fromkeys(("m", "meter", "metre"), 1e9),
}
# Attribute names of a voxel size, and the unit where none stands beside it: what CREMI, funlib,
# Ilastik, Fiji and N5 write.
_VOXELS = {
    "voxel_nm": "nm",
    "pixelResolution": "um",
    "resolution": "nm",
    "voxel_size": "nm",
    "element_size_um": "um",
}
_AXES = ("axis_names", "_ARRAY_DIMENSIONS", "axes")
_COUNTED = {"c": "channel", "s": "channel", "t": "time point"}


@dataclass(frozen=True)
class Geometry:
    """What a file states of an array's place in space.

    Attributes:
        axes: a name for each axis, in the file's order, z, y and x among them.
        voxel_nm: (z, y, x), or None where the file does not state it.
        offset_nm: of the first voxel from the origin, (z, y, x), or None where nothing states it.
        level: which level of a pyramid was opened, in words; empty where there is but one.
        problem: why a voxel size or position that stands in the file is not used; else empty.
        sections: the number of each section, where each is a file with a number.
    """

    axes: tuple[str, ...]
    voxel_nm: Voxel | None = None
    offset_nm: Voxel | None = None
    level: str = ""
    problem: str = ""
    sections: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Opened:
    """A format reader's answer: an array as it is stored, and what its file states of it.

    Attributes:
        name: of the array, for messages; opens it again.
        shape: in the file's order of axes.
        dtype: of its voxels.
        read: returns a box, one slice an axis, in the file's order.
        geometry: what the file states.
        chunks: what is read at once, in the file's order; None where every voxel is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[tuple[slice, ...]], np.ndarray]
    geometry: Geometry
    chunks: Sequence[int] | None = None


def present(opened: Opened, *, select: Mapping[str, int] | None = None) -> LazyArray:
    """Show an array as z, y, x without reading it; axes of length 1 are dropped.

    Args:
        opened: what a format's reader found.
        select: the index to take along other axes, such as ``{"c": 0}``.

    Raises:
        ValueError: z, y and x are not all there, once each, another axis is longer than 1 and not
            selected, or voxels are no numbers; the message names what was found.
    """
    axes, shape = opened.geometry.axes, opened.shape
    found = f"{opened.name}: axes {','.join(axes)} of {tuple(shape)}"
    if len(axes) != len(shape) or sorted(a for a in axes if a in "zyx") != ["x", "y", "z"]:
        raise ValueError(f"{found}; expected Z, Y, X, and other axes of size 1")
    chosen = dict(select or {})
    fixed: dict[int, int] = {}
    for i, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if axis in ("z", "y", "x"):
            continue
        what = _COUNTED.get(axis[:1], f"index of {axis}")
        if axis not in chosen and size != 1:
            raise ValueError(
                f"{found}; expected a single {what}, that is size 1 in {axis} (choose one as "
                f"{opened.name}{IN_FILE}{axis}=0, up to {axis}={size - 1})"
            )
        fixed[i] = chosen.pop(axis, 0)
        if not 0 <= fixed[i] < size:
            raise ValueError(f"{found}; {axis}={fixed[i]} is none of 0..{size - 1}")
    if chosen:
        raise ValueError(f"{found}; it has no axis {next(iter(chosen))} to choose from")
    places = [axes.index(letter) for letter in "zyx"]
    kept = sorted(places)
    turned = tuple(kept.index(place) for place in places)

    def read(box: Box) -> np.ndarray:
        stored = [slice(fixed.get(i, 0), fixed.get(i, 0) + 1) for i in range(len(shape))]
        for place, span in zip(places, box, strict=True):
            stored[place] = span
        part = np.asarray(opened.read(tuple(stored)))
        return part.reshape([part.shape[i] for i in kept]).transpose(turned)

    chunks = None if opened.chunks is None else [opened.chunks[place] for place in places]
    dtype = check_dtype(opened.dtype, opened.name)
    return LazyArray(tuple(shape[place] for place in places), dtype, read, chunks=chunks)


def default_axes(shape: Sequence[int]) -> tuple[str, ...]:
    """Name the axes of an array whose file does not: z, y, x, with others of length 1 around."""
    rank = len(shape)
    for order in ("tczyx", "tzyxc"):
        names = tuple(order[-rank:]) if 3 <= rank <= 5 else ()
        if names and all(n == 1 or a in "zyx" for a, n in zip(names, shape, strict=True)):
            return names
    if 3 <= rank <= 5:
        return tuple("tczyx"[-rank:])
    return tuple("yx") if rank == 2 else tuple(f"axis{i}" for i in range(rank))


def named_axes(names: Any, shape: Sequence[int], name: str) -> tuple[str, ...] | None:
    """Return axis names that a file states, or None where they say nothing of space.

    Raises:
        ValueError: only some of z, y and x are among them.
    """
    try:
        letters = tuple("" if n is None else _text(n).lower().strip(" ^") for n in names or ())
    except TypeError:
        return None
    if len(letters) != len(shape) or not {"z", "y", "x"} & set(letters):
        return None
    if not {"z", "y", "x"} <= set(letters) and sum(int(n) > 1 for n in shape) > 2:
        raise ValueError(
            f"{name}: axes {','.join(letters)} of {tuple(shape)}; expected Z, Y, X, and other axes "
            "of size 1"
        )
    return letters


def from_attributes(
    attributes: Mapping[str, Any],
    shape: Sequence[int],
    *,
    name: str,
    axes: Sequence[str | None] | None = None,
    turned: bool = False,
) -> Geometry:
    """Read the attributes that other programs write beside an array in HDF5, Zarr and N5.

    Axes: ``axistags`` (vigra), ``axis_names``, ``_ARRAY_DIMENSIONS``, ``axes``. Voxel size:
    ``voxel_nm``, ``pixelResolution``, ``resolution``, ``voxel_size``, ``element_size_um``, with
    ``units`` or ``unit`` beside it; N5's ``downsamplingFactors`` multiply it. Position: ``offset``
    (in that unit) or ``voxel_offset``. ``transform`` (COSEM) states all of them.

    Args:
        attributes: of the array.
        shape: of the array as stored.
        name: of the array, for messages.
        axes: that the format itself states; they go before attributes.
        turned: the array is stored x, y, z, though names of axes go z, y, x: N5.

    Raises:
        ValueError: axes are stated of which only some are z, y and x.
    """
    tags = _axistags(attributes.get("axistags"))
    stated = named_axes(axes, shape, name) or named_axes([t["key"] for t in tags], shape, name)
    for key in _AXES:
        names = attributes.get(key)
        if stated is None and names is not None and not isinstance(names, str | bytes):
            back = turned and key != "axes"
            stated = named_axes(list(names)[::-1] if back else names, shape, name)
    letters = stated or default_axes(shape[::-1] if turned else shape)[:: -1 if turned else 1]
    try:
        transform = attributes.get("transform")
        if isinstance(transform, Mapping) and {"axes", "scale"} <= set(transform):
            own = [_text(a).lower() for a in transform["axes"]]
            units = _units(transform.get("units"), "nm")
            voxel = lengths(transform["scale"], own, units, "transform")
            offset = None
            if "translate" in transform:
                offset = lengths(transform["translate"], own, units, "transform", signed=True)
            return Geometry(letters, voxel, offset)
        return Geometry(letters, *_voxel_and_offset(attributes, tags, letters))
    except ValueError as error:
        return Geometry(letters, problem=str(error))


def lengths(
    values: Any, axes: Sequence[str], units: Sequence[str], what: str, *, signed: bool = False
) -> Voxel:
    """Return (z, y, x) in nm of numbers in the order of axes.

    Args:
        values: one for each axis, or one for each of those in space.
        axes: their names.
        units: likewise, or one for all.
        what: what the numbers are, for messages.
        signed: whether they may be zero or less, as those of a position.

    Raises:
        ValueError: their number does not fit, a unit is none of length, or a size is not positive.
    """
    numbers = [float(v) for v in np.asarray(values, float).ravel()]
    spatial = [a for a in axes if a in ("z", "y", "x")]
    for order in (list(axes), spatial):
        if len(numbers) == len(order):
            break
    else:
        raise ValueError(
            f"{what} has {len(numbers)} numbers for the {len(axes)} axes {','.join(axes)}"
        )
    per_axis = list(units) * len(order) if len(units) == 1 else list(units)
    if len(per_axis) == len(axes) != len(order):
        per_axis = [u for u, a in zip(per_axis, axes, strict=True) if a in spatial]
    if len(per_axis) == len(spatial) != len(order):
        rest = iter(per_axis)
        per_axis = [next(rest) if a in spatial else "" for a in order]
    if len(per_axis) != len(order):
        raise ValueError(f"{what} has {len(numbers)} numbers and {len(per_axis)} units")
    found = {}
    for axis, number, unit in zip(order, numbers, per_axis, strict=True):
        if axis not in spatial:
            continue
        scale = unit_nm(unit)
        if scale is None and not unit:
            raise ValueError(f"{what} states no unit along {axis}")
        if scale is None:
            raise ValueError(f"{what} is in {unit!r} along {axis}, which is no length known here")
        if not (np.isfinite(number) and (signed or number > 0)):
            raise ValueError(f"{what} is {number:g} along {axis}; expected a positive number")
        found[axis] = number * scale
    if len(found) != 3:
        raise ValueError(f"{what} is stated along {','.join(found)} only; expected z, y and x")
    return found["z"], found["y"], found["x"]


def unit_nm(unit: Any) -> float | None:
    """Return the nanometres in one ``unit`` of length, or None for a name that is not known."""
    text = _text(unit).strip().lower()
    return _UNITS_NM.get(text, _UNITS_NM.get(text.removesuffix("s")))


def voxel_size(values: Any, name: str) -> Voxel:
    """Check a voxel size in nm, (z, y, x).

    Raises:
        ValueError: there are not three finite, positive numbers, or one is below 0.1 nm or above
            100 um, so that its unit is another; the message begins with ``name``.
    """
    try:
        sizes = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) != 3 or not all(np.isfinite(s) and s > 0 for s in sizes):
        raise ValueError(f"{name}: voxel_nm is {values!r}; expected three positive nm (z, y, x)")
    for low, unit, scale in ((True, "um", 1e3), (False, "pm", 1e-3)):
        odd = min(sizes) < LEAST_NM if low else max(sizes) > MOST_NM
        if odd:
            guess = ",".join(f"{size * scale:g}" for size in sizes)
            raise ValueError(
                f"{name}: voxels of {size_text(sizes)} (z, y, x) are "
                f"{'below 0.1 nm' if low else 'above 100 um'}; is that in {unit}? "
                f"Expected nm: --voxel_nm=z,y,x (voxel_nm= in Python) overrides it, such as "
                f"--voxel_nm={guess}"
            )
    return sizes[0], sizes[1], sizes[2]


def settle_voxel(
    geometry: Geometry,
    given: Sequence[float] | None,
    name: str,
    *,
    otherwise: Sequence[float] | None = None,
) -> Voxel:
    """Return the voxel size given, else the one stated, else the one of what belongs to it.

    Raises:
        ValueError: neither is there, or it cannot be; the message says which flag gives it.
    """
    stated, problem = geometry.voxel_nm, geometry.problem
    if given is None and stated is None and otherwise is not None:
        given = otherwise
    if given is None:
        if stated is None:
            why = f"its voxel size cannot be used: {problem}" if problem else ""
            raise ValueError(
                f"{name}: {why or 'the file states no voxel size'}; give it in nm as "
                "--voxel_nm=z,y,x (voxel_nm=(z, y, x) in Python)"
            )
        return voxel_size(stated, name)
    sizes = voxel_size(given, name)
    if problem:
        warnings.warn(f"{name}: {problem}; using the given {sizes} nm", stacklevel=3)
    if stated is not None and not np.allclose(sizes, stated, rtol=0.01, atol=0):
        warnings.warn(
            f"{name}: the file states voxels of {stated} nm (z, y, x); using the given {sizes} nm",
            stacklevel=3,
        )
    return sizes


def size_text(voxel_nm: Sequence[float]) -> str:
    """A voxel size as messages write it, such as ``50 x 4 x 4 nm``."""
    return " x ".join(f"{size:g}" for size in voxel_nm) + " nm"


def _voxel_and_offset(
    attributes: Mapping[str, Any], tags: Sequence[Mapping[str, Any]], axes: Sequence[str]
) -> tuple[Voxel | None, Voxel | None]:
    beside = attributes.get("units", attributes.get("unit"))
    units, voxel = _units(beside, "nm"), None
    for key, unit in _VOXELS.items():
        values = attributes.get(key)
        if values is None:
            continue
        units = _units(beside, unit)
        if isinstance(values, Mapping):
            units = _units(values.get("unit", beside), unit)
            values = values.get("dimensions", ())
        if key in ("voxel_nm", "element_size_um"):  # the name is the unit
            units = [unit]
        voxel = lengths(values, axes, units, key)
        break
    else:
        # Vigra's 0 stands for unknown; a resolution without a unit may be anything.
        sizes = [float(tag.get("resolution") or 0) for tag in tags if tag["key"] in ("z", "y", "x")]
        if len(sizes) == 3 and min(sizes) > 0:
            order = [tag["key"] for tag in tags if tag["key"] in ("z", "y", "x")]
            held = _json(attributes.get("axis_units"))
            by_axis = held if isinstance(held, Mapping) else {}
            units = [_text(by_axis.get(axis, "")) for axis in order]
            voxel = lengths(sizes, order, units, "the resolution in axistags")
    if voxel is not None and "downsamplingFactors" in attributes:
        factors = lengths(attributes["downsamplingFactors"], axes, ["nm"], "downsamplingFactors")
        voxel = (voxel[0] * factors[0], voxel[1] * factors[1], voxel[2] * factors[2])
    # Others mean an offset of grey levels, which is one number.
    if "offset" in attributes and np.size(attributes["offset"]) in (3, len(axes)):
        return voxel, lengths(attributes["offset"], axes, units, "offset", signed=True)
    if "voxel_offset" in attributes and voxel is not None:
        z, y, x = lengths(attributes["voxel_offset"], axes, ["nm"], "voxel_offset", signed=True)
        return voxel, (z * voxel[0], y * voxel[1], x * voxel[2])
    return voxel, None


def _axistags(held: Any) -> list[dict[str, Any]]:
    """The axes of a vigra array, in its order."""
    found = _json(held)
    found = found.get("axes") if isinstance(found, Mapping) else None
    return [t for t in found or () if isinstance(t, dict) and "key" in t]


def _json(held: Any) -> Any:
    if not isinstance(held, str | bytes):
        return held
    try:
        return json.loads(held)
    except ValueError:
        return None


def _units(stated: Any, default: str) -> list[str]:
    """Units as a list, one for all axes or one for each; an empty one is the default."""
    if stated is None:
        return [default]
    many = not isinstance(stated, str | bytes) and np.ndim(stated) > 0
    return [_text(unit) or default for unit in (list(stated) if many else [stated])]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
