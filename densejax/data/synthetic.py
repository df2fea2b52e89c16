"""Synthetic worlds with known truth: electron microscopy of blood platelets, made from one key.

The world has the look and the class shares of the platelet volumes of Guay et al. (Scientific
Reports 2021): pale plasma, grey cells of differing tone behind dark membranes, and inside them
mottled mitochondria, grey alpha granules, clear canalicular vessels and dense granules (a pale
body around a dark core), among unlabelled dark glycogen that no intensity threshold tells from an
organelle. Lengths are in nanometres, so the same world can be sampled with other voxels. Made on
the host, plane by plane and organelle by organelle: work and memory grow with the volume only.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import scipy

from densejax.data._platelets import (
    ALPHA,
    BODY,
    CELL,
    CLASS_SHARES,
    CORE,
    MITO,
    VESSEL,
    Cells,
    Organelle,
    least_radius,
    least_volume,
    smooth_noise,
)
from densejax.typing import Key

CLASS_NAMES = (
    "background",
    "cell",
    "mitochondrion",
    "alpha granule",
    "canalicular vessel",
    "dense granule body",
    "dense granule core",
)

# Mean grey of each class, 0..255, close to the one published slice; the spreads overlap.
_GREY = np.array([200, 132, 58, 78, 180, 152, 44], np.float32)
# Median volume (1e6 nm^3) and spread of its logarithm, from the published training labels.
_ORGANELLES = {MITO: (30.0, 0.7), ALPHA: (35.0, 0.7), VESSEL: (6.0, 0.9), BODY: (15.0, 0.5)}
_MIN_SHAPE = (6, 48, 48)
_MIN_EXTENT_NM = (300.0, 480.0, 480.0)


class SyntheticWorld(NamedTuple):
    """A volume with exact labels.

    Attributes:
        images: [z, y, x] uint8.
        labels: [z, y, x] int32, an index into ``class_names``; every voxel is labelled.
        voxel_nm: voxel size (z, y, x), nanometres.
        class_names: one name a class, in label order.
    """

    images: np.ndarray
    labels: np.ndarray
    voxel_nm: tuple[float, float, float]
    class_names: tuple[str, ...]


def platelet_world(
    key: Key,
    *,
    shape: tuple[int, int, int] = (24, 256, 256),
    voxel_nm: tuple[float, float, float] = (50.0, 10.0, 10.0),
    cell_nm: float = 1400.0,
) -> SyntheticWorld:
    """Draws a platelet-like volume with exact labels; the same key gives the same bits.

    All seven classes occur, whatever the key. From an extent of about 600 x 1600 x 1600 nm on, each
    class has about its published share; in smaller worlds the rare organelles, which have a least
    size, exceed theirs.

    Args:
        key: a jax key; seeds a NumPy generator.
        shape: voxels (z, y, x), at least (6, 48, 48).
        voxel_nm: voxel size (z, y, x) in nanometres; the extent shape * voxel_nm must be at least
            (300, 480, 480) nm.
        cell_nm: mean distance between cells across their long axis, nanometres. Published cells
            are about 2000 nm wide; the default is smaller so that small worlds hold several.

    Returns:
        The world: images uint8 [z, y, x], labels int32 [z, y, x] in 0..6.

    Raises:
        ValueError: shape or voxel_nm is not three positive numbers, the world is too small to hold
            every class, or its voxels are too large for the smallest organelle.
        RuntimeError: a class found no room, which takes cells out of all proportion to the world.
    """
    voxel = _validated(shape, voxel_nm, cell_nm)
    words = np.asarray(jax.random.key_data(key)).ravel()
    rng = np.random.default_rng([int(word) for word in words])
    cells = Cells(rng, shape, voxel, cell_nm)
    labels = np.empty(shape, np.int32)
    # Grey levels to add to the mean of the class: membranes, tones of cells, organelle texture.
    shade = np.empty(shape, np.int8)
    for z in range(shape[0]):
        labels[z], shade[z] = cells.plane(rng, z)
    # The rarest first, while there is room.
    for kind in (BODY, MITO, ALPHA, VESSEL):
        _place(rng, kind, labels, shade, cells)
    images = _render(rng, labels, shade, voxel)
    size = (float(voxel[0]), float(voxel[1]), float(voxel[2]))
    return SyntheticWorld(images, labels, size, CLASS_NAMES)


def _validated(shape: tuple[int, ...], voxel_nm: tuple[float, ...], cell_nm: float) -> np.ndarray:
    if len(shape) != 3 or any(int(n) != n or n < m for n, m in zip(shape, _MIN_SHAPE, strict=True)):
        raise ValueError(f"shape is {shape}; expected (z, y, x) of at least {_MIN_SHAPE} voxels")
    voxel = np.asarray(voxel_nm, np.float64)
    if voxel.shape != (3,) or not np.all(np.isfinite(voxel) & (voxel > 0)):
        raise ValueError(f"voxel_nm is {voxel_nm}; expected three positive sizes (z, y, x) in nm")
    extent = voxel * shape
    if np.any(extent < _MIN_EXTENT_NM):
        raise ValueError(
            f"shape {shape} of voxels {voxel_nm} spans {tuple(extent)} nm; "
            f"expected at least {_MIN_EXTENT_NM}"
        )
    if np.any(voxel > 120):
        raise ValueError(f"voxel_nm is {voxel_nm}; expected at most 120 nm, or organelles vanish")
    if not cell_nm >= 400:
        raise ValueError(f"cell_nm is {cell_nm}; expected at least 400 nm")
    return voxel


def _place(
    rng: np.random.Generator, kind: int, labels: np.ndarray, shade: np.ndarray, cells: Cells
) -> None:
    """Puts organelles of one kind into the cells, in place, up to their share of the volume."""
    voxel = cells.voxel
    unit = float(np.prod(voxel))
    share = CLASS_SHARES[kind] + (CLASS_SHARES[CORE] if kind == BODY else 0)
    target = share * labels.size * unit
    median, spread = _ORGANELLES[kind]
    # Small worlds get several small organelles rather than one large one.
    largest = target / (1 if kind == BODY else 2 if kind == MITO else 4)
    least = least_volume(kind, voxel)
    filled, crowding = 0.0, 0.0
    least_tall = least_radius(kind, voxel)
    # Dense granules keep off the faces of the world: so few a world that a cut one would count.
    centres = _centres(rng, cells, least_tall, border=least_tall if kind == BODY else 0.0)
    while filled < target - 0.5 * least or not filled:
        volume = 1e6 * median * math.exp(spread * rng.normal())
        volume = max(min(volume, 100e6, largest, 1.1 * (target - filled)), least)
        volume = max(volume * 0.9**crowding, min(volume, least) * 0.5)
        shape = Organelle(rng, kind, volume, voxel)
        painted = shape.paint(rng, next(centres), labels, shade, voxel, 0.99 - 0.004 * crowding)
        filled += painted * unit
        crowding = 0.7 * crowding if painted else crowding + 0.1
        if crowding > 60:
            break
    if not filled:
        raise RuntimeError(f"found no room for any {CLASS_NAMES[kind]} in a world {labels.shape}")


def _centres(
    rng: np.random.Generator, cells: Cells, radius: float, *, border: float
) -> Iterator[np.ndarray]:
    """Endless positions [3] nm inside cells, ``border`` nm off the faces, most of them deep."""
    extent = np.array(cells.shape) * cells.voxel
    edge = np.minimum(border, 0.3 * extent)
    for least in (0.5 * radius, 0.0, -np.inf):
        inside = np.argwhere(cells.depth > least).astype(np.int32)
        place = inside * cells.pitch
        inside = inside[np.all((place >= edge) & (place < extent - edge), axis=1)]
        if len(inside):
            break
    depth = cells.depth[tuple(inside.T)]
    deep = inside[depth >= min(1.5 * radius, float(np.quantile(depth, 0.6)))]
    while True:
        pool = deep if rng.random() < 0.8 else inside
        at = pool[rng.integers(len(pool))]
        # On a plane, so that a thin organelle is met by the same planes wherever it lies.
        point = at * cells.pitch + rng.uniform(-0.5, 0.5, 3) * cells.pitch
        point = np.clip(point, edge, extent - cells.voxel - edge)
        yield np.round(point / cells.voxel) * cells.voxel


def _render(
    rng: np.random.Generator, labels: np.ndarray, shade: np.ndarray, voxel: np.ndarray
) -> np.ndarray:
    """Images [z, y, x] uint8: glycogen, blur, uneven lighting, section contrast and noise."""
    images = np.empty(labels.shape, np.uint8)
    flat = labels.shape[1:]
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in flat)
    slope = rng.normal(0, 6, 2)
    light = slope[0] * y[:, None] + slope[1] * x - 8 * (y[:, None] ** 2 + x**2)
    carry = np.exp(-voxel[0] / 60)  # glycogen is hardly thicker than a section
    grains = smooth_noise(rng, flat, 18 / voxel[1:])
    clouds = smooth_noise(rng, flat, 160 / voxel[1:])
    for z in range(len(labels)):
        grains = _drift(rng, grains, 18 / voxel[1:], carry)
        clouds = _drift(rng, clouds, 160 / voxel[1:], carry**0.2)
        cytoplasm = labels[z] == CELL
        clump = np.clip(grains + 1.1 * clouds - 1.1, 0, 1.0)
        pale = np.clip(-clouds - 1.2, 0, 1.5)
        plane = _GREY[labels[z]] + shade[z]
        plane += cytoplasm * (6 * grains - 54 * clump + 20 * pale)
        plane = scipy.ndimage.gaussian_filter(plane, 9 / voxel[1:], truncate=3)
        gain, offset = rng.normal(1, 0.04), rng.normal(0, 4)
        plane = (plane - 128) * gain + 128 + offset + light
        # Shot noise grows with the signal; the detector adds its own.
        noise = rng.standard_normal(flat, np.float32)
        noise = noise + 0.5 * np.roll(noise, 1, axis=1)
        plane += noise * np.sqrt(40 + 0.6 * np.clip(plane, 0, None))
        images[z] = np.clip(np.round(plane), 0, 255).astype(np.uint8)
    return images


def _drift(
    rng: np.random.Generator, field: np.ndarray, sigma: np.ndarray, carry: float
) -> np.ndarray:
    """The next plane of a noise field that keeps the fraction ``carry`` of this one."""
    fresh = smooth_noise(rng, field.shape, sigma)
    return carry * field + math.sqrt(1 - carry**2) * fresh
