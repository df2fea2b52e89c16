"""Metadata of an OME-Zarr image, as dictionaries: NGFF 0.4 and 0.5 built, 0.1 to 0.6 read.

Version 0.4 lies on Zarr 2 and keeps its keys in ``.zattrs``; version 0.5 lies on Zarr 3 and keeps
them under ``ome`` in ``zarr.json``. Here both are one flat dictionary with the keys ``version``,
``multiscales``, ``image-label`` and ``omero`` of NGFF (Moore et al. 2021, doi
10.1038/s41592-021-01326-w; https://ngff.openmicroscopy.org) and ``densejax``, our own.
"""

import colorsys
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from densejax.data.geometry import Geometry, default_axes, lengths

Version = Literal["0.4", "0.5"]
Kind = Literal["image", "labels"]

VERSIONS = ("0.4", "0.5")
OURS = "densejax"
_CHANGES = "coordinateTransformations"
GOLDEN = 0.618034  # turns of the hue from one class to the next: neighbours always differ


def image_metadata(
    name: str,
    *,
    version: Version,
    kind: Kind,
    voxel_nm: Sequence[float],
    offset: Sequence[float],
    channel_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
    colours: Sequence[str] | None,
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe an image that has its finest level only.

    Args:
        name: of the image, for viewers.
        version: of NGFF.
        kind: ``labels`` adds ``image-label``: colours and names of the classes.
        voxel_nm: (z, y, x), nm.
        offset: (z, y, x), voxels from the origin of the volume that this one is cut from.
        channel_names: names of the leading axis, or None where there is none.
        class_names: one for each value of a label image from 0 on, or None.
        colours: ``#RRGGBB`` for each of ``class_names``, or None for hues that we choose.
        attributes: anything else, kept under ``densejax``.

    Returns:
        The flat dictionary that this file's docstring describes.
    """
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if channel_names else []
    axes += [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    multiscale: dict[str, Any] = {"name": name, "axes": axes}
    if version == "0.4":
        multiscale["version"] = version
    multiscale["datasets"] = [level(0, voxel_nm, offset, factors=(1, 1, 1), rank=len(axes))]
    found: dict[str, Any] = {"version": version, "multiscales": [multiscale]}
    if kind == "labels":
        found["image-label"] = _image_label(
            version, class_names, colours, attributes.get("not_predicted")
        )
    if channel_names:
        found["omero"] = {"channels": _channels(channel_names, colours)}
    ours = dict(attributes)
    for key, names in (("class_names", class_names), ("channel_names", channel_names)):
        if names is not None:
            ours.setdefault(key, list(names))
    return found | {OURS: ours}


def level(
    number: int,
    voxel_nm: Sequence[float],
    offset: Sequence[float],
    *,
    factors: Sequence[int],
    rank: int,
) -> dict[str, Any]:
    """Describe one level: where its array lies, its voxel size and the centre of its first voxel.

    Args:
        number: of the level, the name of its array.
        voxel_nm: of level 0, (z, y, x), nm.
        offset: of level 0, (z, y, x), voxels.
        factors: voxels of level 0 along the edges of one voxel of this level, (z, y, x).
        rank: 3, or 4 with a leading axis of channels.
    """
    voxel, start = np.asarray(voxel_nm, float), np.asarray(offset, float)
    # NGFF places a voxel by its centre: that of eight voxels lies between them.
    centre = (start + (np.asarray(factors) - 1) / 2) * voxel
    scale = [1.0] * (rank - 3) + [float(s) for s in voxel * np.asarray(factors)]
    translation = [0.0] * (rank - 3) + [float(t) for t in centre]
    changes = [
        {"type": "scale", "scale": scale},
        {"type": "translation", "translation": translation},
    ]
    return {"path": str(number), "coordinateTransformations": changes}


def scale_and_translation(dataset: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return what ``level`` wrote: (z, y, x) of the scale and of the translation, nm."""
    scale, translation = [1.0] * 3, [0.0] * 3
    for change in dataset.get("coordinateTransformations", []):
        if change["type"] == "scale":
            scale = [float(v) for v in change["scale"][-3:]]
        if change["type"] == "translation":
            translation = [float(v) for v in change["translation"][-3:]]
    return scale, translation


@dataclass(frozen=True)
class _Affine:
    """A diagonal map of voxels to space, and which axis of the array each of its axes is."""

    scale: np.ndarray
    shift: np.ndarray | None
    order: tuple[int, ...]


class _Unfit(ValueError):
    """Transformations that cannot be read, though the array can."""


def level_geometry(
    multiscale: Mapping[str, Any],
    number: int,
    shape: Sequence[int] | None,
    *,
    name: str,
    read_numbers: Callable[[str], Sequence[float]],
) -> Geometry:
    """Return what a multiscale image states of one of its levels.

    Scale and translation as numbers or as the path of an array of them, sequence, identity and a
    change of axes are followed; of 0.6, into the first coordinate system that they lead to.

    Args:
        multiscale: as in the file, of any version up to 0.6.
        number: of the level in ``datasets``.
        shape: of its array; None where that is not open, and the axes alone count.
        name: of the image, for messages.
        read_numbers: reads the array at a path in the group.

    Raises:
        ValueError: a rotation, an affine or another map turns the axes.
    """
    dataset = multiscale["datasets"][number]
    paths = [str(d.get("path")) for d in multiscale["datasets"]]
    level = f"level {paths[number]} of {len(paths)}" if len(paths) > 1 else ""
    steps, systems = _steps(multiscale, dataset), multiscale.get("coordinateSystems")
    held = multiscale.get("axes")
    if systems:
        reached = [step.get("output") for step in steps]
        ends = [s for s in systems if s.get("name") in reached]
        held = (ends or systems)[0].get("axes")
    described = [a if isinstance(a, Mapping) else {"name": a} for a in held or ()]
    axes = tuple(str(a.get("name", "")).lower() for a in described)
    if not axes:  # before there were any
        axes = default_axes(shape or (1,) * 5)
        described = [{"name": a} for a in axes]
    if shape is not None and len(axes) != len(shape):
        problem = f"its multiscales name {len(axes)} axes ({','.join(axes)}) for {tuple(shape)}"
        return Geometry(default_axes(shape), level=level, problem=problem)
    try:
        found = _follow(steps, len(axes), name, paths[number], read_numbers)
    except _Unfit as error:
        return Geometry(axes, level=level, problem=str(error))
    stored = [""] * len(axes)
    for letter, place in zip(axes, found.order, strict=True):
        stored[place] = letter
    # Since 0.6 a missing scale means 1 unit; before 0.6 the size is then unknown.
    if not systems and not any(_kind(step) == "scale" for step in steps):
        return Geometry(tuple(stored), level=level)
    units = [str(a.get("unit") or "") for a in described]
    try:
        voxel = lengths(found.scale, axes, units, "the scale of its multiscales")
        offset = None
        if found.shift is not None:
            what = "the translation of its multiscales"
            offset = lengths(found.shift, axes, units, what, signed=True)
    except ValueError as error:
        return Geometry(tuple(stored), level=level, problem=str(error))
    return Geometry(tuple(stored), voxel, offset, level)


def _steps(multiscale: Mapping[str, Any], dataset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The transformations from an array to space, in their order."""
    steps, whole = (
        [s if isinstance(s, Mapping) else {"type": s} for s in held.get(_CHANGES) or ()]
        for held in (dataset, multiscale)
    )
    systems = multiscale.get("coordinateSystems")
    if not systems or not steps:
        return steps + whole
    # Since 0.6 those of the whole image lead from one named system to others.
    here, wanted = steps[-1].get("output"), systems[0].get("name")
    if here == wanted:
        return steps
    return steps + [s for s in whole if s.get("input") == here and s.get("output") == wanted]


def _kind(change: Mapping[str, Any]) -> str:
    return str(change.get("type"))


def _follow(
    changes: Sequence[Mapping[str, Any]],
    rank: int,
    name: str,
    path: str,
    read_numbers: Callable[[str], Sequence[float]],
) -> _Affine:
    scale, shift, order = np.ones(rank), None, np.arange(rank)
    flat: list[Mapping[str, Any]] = []
    for change in changes:
        flat += change.get("transformations", ()) if _kind(change) == "sequence" else [change]
    for change in flat:
        kind = _kind(change)
        if kind == "identity":
            continue
        if kind == "mapAxis" and sorted(change.get("mapAxis", ())) == list(range(rank)):
            turn = list(change["mapAxis"])
            scale, order = scale[turn], order[turn]
            shift = None if shift is None else shift[turn]
            continue
        if kind not in ("scale", "translation"):
            raise ValueError(
                f"{name}: a transformation of type {kind!r} places it in space; expected scale, "
                f"translation, or a sequence of them (its array alone opens as {name}::{path} with "
                "--voxel_nm)"
            )
        values = change.get(kind)
        if values is None and "path" in change:
            try:
                values = read_numbers(str(change["path"]))
            except (OSError, ValueError) as error:
                raise _Unfit(
                    f"the {kind} lies in the array {change['path']!r}, which cannot be read "
                    f"({error})"
                ) from error
        try:
            numbers = np.asarray([] if values is None else values, float).ravel()
        except (TypeError, ValueError) as error:
            raise _Unfit(f"the {kind} of its multiscales is {values!r}") from error
        if len(numbers) != rank:
            raise _Unfit(
                f"the {kind} of its multiscales has {len(numbers)} numbers for {rank} axes"
            )
        if kind == "scale":
            scale, shift = scale * numbers, None if shift is None else shift * numbers
        else:
            shift = numbers + (0 if shift is None else shift)
    return _Affine(scale, shift, tuple(int(i) for i in order))


def to_file(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat dictionary as the attributes of a group: nested below ``ome`` in 0.5."""
    if metadata["version"] == "0.4":
        return {key: value for key, value in metadata.items() if key != "version"}
    ome = {key: value for key, value in metadata.items() if key != OURS}
    return {"ome": ome, OURS: metadata[OURS]}


def from_file(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a group as the flat dictionary; what is absent stays absent."""
    if "ome" in attributes:
        ome = dict(attributes["ome"])
        return ome | {OURS: attributes.get(OURS, {})}
    scales = attributes.get("multiscales") or [{}]
    return {"version": scales[0].get("version", "0.4"), OURS: {}} | dict(attributes)


def _image_label(
    version: Version,
    names: Sequence[str] | None,
    colours: Sequence[str] | None,
    not_predicted: int | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {"version": version} if version == "0.4" else {}
    if names is None:
        return found
    hues = list(colours) if colours is not None else _hues(len(names))
    values = [
        # The first class is the background: transparent, so that the image shows through.
        {"label-value": i, "rgba": [*_rgb(hue), 255 if i else 0]}
        for i, hue in enumerate(hues)
    ]
    described = [{"label-value": i, "name": name} for i, name in enumerate(names)]
    if not_predicted is not None:
        values.append({"label-value": int(not_predicted), "rgba": [0, 0, 0, 0]})
        described.append({"label-value": int(not_predicted), "name": "not predicted"})
    return found | {"colors": values, "properties": described}


def _channels(names: Sequence[str], colours: Sequence[str] | None) -> list[dict[str, Any]]:
    hues = list(colours) if colours is not None else _hues(len(names))
    window = {"start": 0.0, "end": 255.0, "min": 0.0, "max": 255.0}
    return [
        {"label": name, "color": hue.lstrip("#"), "window": window, "active": True}
        for name, hue in zip(names, hues, strict=True)
    ]


def _hues(count: int) -> list[str]:
    """Return ``count`` colours: grey, then hues as far apart as their number allows."""
    found = ["#808080"]
    for i in range(1, count):
        red, green, blue = colorsys.hsv_to_rgb((0.58 + GOLDEN * i) % 1.0, 0.75, 0.9)
        found.append(f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}")
    return found[:count]


def _rgb(colour: str) -> list[int]:
    if re.fullmatch("#[0-9a-fA-F]{6}", colour) is None:
        raise ValueError(f"colour {colour!r}: expected #RRGGBB")
    return list(bytes.fromhex(colour[1:]))
