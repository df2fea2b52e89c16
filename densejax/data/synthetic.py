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

from densejax.typing import Key

# Measured over the published training labels (50x800x800).
CLASS_SHARES = (0.3606, 0.5526, 0.0062, 0.0464, 0.0312, 0.0024, 0.00065)
BACKGROUND, CELL, MITO, ALPHA, VESSEL, BODY, CORE = range(7)
_COARSE_NM = 50.0  # pitch of the grid on which cells, smooth at this scale, are laid out

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
    cells = _Cells(rng, shape, voxel, cell_nm)
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
    rng: np.random.Generator, kind: int, labels: np.ndarray, shade: np.ndarray, cells: "_Cells"
) -> None:
    """Puts organelles of one kind into the cells, in place, up to their share of the volume."""
    voxel = cells.voxel
    unit = float(np.prod(voxel))
    share = CLASS_SHARES[kind] + (CLASS_SHARES[CORE] if kind == BODY else 0)
    target = share * labels.size * unit
    median, spread = _ORGANELLES[kind]
    # Small worlds get several small organelles rather than one large one.
    largest = target / (1 if kind == BODY else 2 if kind == MITO else 4)
    least = _least_volume(kind, voxel)
    filled, crowding = 0.0, 0.0
    least_tall = _least_radius(kind, voxel)
    # Dense granules keep off the faces of the world: so few a world that a cut one would count.
    centres = _centres(rng, cells, least_tall, border=least_tall if kind == BODY else 0.0)
    while filled < target - 0.5 * least or not filled:
        volume = 1e6 * median * math.exp(spread * rng.normal())
        volume = max(min(volume, 100e6, largest, 1.1 * (target - filled)), least)
        volume = max(volume * 0.9**crowding, min(volume, least) * 0.5)
        shape = _Organelle(rng, kind, volume, voxel)
        painted = shape.paint(rng, next(centres), labels, shade, voxel, 0.99 - 0.004 * crowding)
        filled += painted * unit
        crowding = 0.7 * crowding if painted else crowding + 0.1
        if crowding > 60:
            break
    if not filled:
        raise RuntimeError(f"found no room for any {CLASS_NAMES[kind]} in a world {labels.shape}")


def _centres(
    rng: np.random.Generator, cells: "_Cells", radius: float, *, border: float
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
    grains = _smooth_noise(rng, flat, 18 / voxel[1:])
    clouds = _smooth_noise(rng, flat, 160 / voxel[1:])
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
    fresh = _smooth_noise(rng, field.shape, sigma)
    return carry * field + math.sqrt(1 - carry**2) * fresh


class _Cells:
    """Cells on a jittered lattice: a warped Voronoi diagram whose walls are widened to plasma."""

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int, int], voxel: np.ndarray, size: float
    ) -> None:
        self.shape, self.voxel = shape, voxel
        self.pitch = np.maximum(voxel, _COARSE_NM)
        counts = np.ceil(np.array(shape) * voxel / self.pitch).astype(int) + 1
        self.axes = [np.arange(n) * p for n, p in zip(counts, self.pitch, strict=True)]
        self.weights = [
            _spline_weights(np.arange(n) * v / p, count)
            for n, v, p, count in zip(shape, voxel, self.pitch, counts, strict=True)
        ]
        # Platelets are elongated and lie roughly parallel: cells of equal size in a turned and
        # squeezed frame.
        angle = rng.uniform(0, np.pi)
        turn = np.array(
            [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
        )
        self.frame = np.diag([0.85, 0.5, 1.0]) @ turn / size
        tree, tones = _lattice(rng, self.frame, np.array([a[-1] for a in self.axes]))
        warp = [_Waves(rng, size * 0.8, 0.09 * size) for _ in range(3)]
        gaps = _Waves(rng, size * 1.2, 0.12)
        margin = np.empty(counts, np.float32)
        walls = np.empty(counts, np.float32)
        self.tone = np.empty(counts, np.float32)
        for i, z in enumerate(self.axes[0]):
            points = np.stack(np.meshgrid([z], *self.axes[1:], indexing="ij"), -1).reshape(-1, 3)
            moved = points + np.stack([w(points) for w in warp], -1)
            near, which = tree.query(moved @ self.frame.T, k=2)
            wall = near[:, 1] - near[:, 0]
            walls[i] = wall.reshape(margin.shape[1:])
            margin[i] = (wall + gaps(points)).reshape(margin.shape[1:])
            self.tone[i] = tones[which[:, 0]].reshape(margin.shape[1:])
        # Cells that lie close are still parted by a thin cleft.
        walls -= np.float32(70 / size)
        margin -= self._plasma_level(margin, walls)
        # Half the difference of two distances is about the distance to the wall.
        self.depth = np.minimum(margin, walls) * np.float32(0.5 * size)

    def _plasma_level(self, margin: np.ndarray, walls: np.ndarray) -> np.float32:
        """The margin below which, clefts included, the published share of the world is plasma."""
        some = np.unique(np.linspace(0, self.shape[0] - 1, 12).round().astype(int))
        seen = [np.where(self.fine(walls, z) < 0, -9.0, self.fine(margin, z)) for z in some]
        return np.float32(max(np.quantile(seen, CLASS_SHARES[BACKGROUND]), -1.0))

    def fine(self, field: np.ndarray, z: int) -> np.ndarray:
        """Plane z [y, x] of a coarse field [z, y, x], at the resolution of the world."""
        wz, wy, wx = self.weights
        row = wz[[z]]
        plane = np.zeros(field.shape[1:], np.float32)
        for weight, coarse in zip(row.data, row.indices, strict=True):
            plane += weight * field[coarse]
        return (wx @ (wy @ plane).T).T

    def plane(self, rng: np.random.Generator, z: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels [y, x] int32 (background, cell) and shade [y, x] int8 of plane z."""
        ruffle = _smooth_noise(rng, self.shape[1:], 30 / self.voxel[1:])
        depth = self.fine(self.depth, z) + 7 * ruffle
        cell = depth > 0
        membrane = np.exp(-(((depth - 12) / 16) ** 2))
        shade = cell * self.fine(self.tone, z) - 48 * membrane
        return cell.astype(np.int32), np.clip(shade, -127, 127).astype(np.int8)


def _spline_weights(where: np.ndarray, count: int) -> scipy.sparse.csr_array:
    """[n, count] float32: smoothing cubic B-spline of a coarse axis at fractional indices."""
    t = np.abs(where[:, None] - np.arange(count))
    near = 2 / 3 - t**2 + t**3 / 2
    weights = np.where(t < 1, near, np.clip(2 - t, 0, None) ** 3 / 6)
    return scipy.sparse.csr_array((weights / weights.sum(1, keepdims=True)).astype(np.float32))


def _lattice(
    rng: np.random.Generator, frame: np.ndarray, extent: np.ndarray
) -> tuple[scipy.spatial.cKDTree, np.ndarray]:
    """Jittered lattice of spacing one covering the box [0, extent] seen in ``frame``, and tones."""
    corners = np.stack(np.meshgrid(*[(0, e) for e in extent], indexing="ij"), -1).reshape(-1, 3)
    seen = corners @ frame.T
    low, high = np.floor(seen.min(0)) - 2, np.ceil(seen.max(0)) + 2
    axes = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    points = points + rng.uniform(-0.38, 0.38, points.shape)
    tones = rng.normal(0, 9, len(points)).clip(-28, 28).astype(np.float32)
    return scipy.spatial.cKDTree(points), tones


class _Waves:
    """A smooth random function of space: a sum of plane waves longer than ``scale`` nm."""

    def __init__(self, rng: np.random.Generator, scale: float, amplitude: float) -> None:
        directions = rng.normal(size=(3, 6))
        directions /= np.linalg.norm(directions, axis=0)
        self.waves = directions * (2 * np.pi / (scale * rng.uniform(1, 2.5, 6)))
        self.phases = rng.uniform(0, 2 * np.pi, 6)
        self.amplitude = amplitude / math.sqrt(3)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return self.amplitude * np.sin(points @ self.waves + self.phases).sum(-1)


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: np.ndarray
) -> np.ndarray:
    """Gaussian noise of about unit variance, smoothed over ``sigma`` voxels, float32."""
    noise = rng.standard_normal(shape, np.float32)
    smooth = scipy.ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=3)
    return smooth / max(float(smooth.std()), 1e-6)


def _least_radius(kind: int, voxel: np.ndarray) -> float:
    """Half the height of the smallest organelle, nm; a dense granule must hold a core."""
    return max(120.0, 2.3 * voxel[0]) if kind == BODY else max(55.0, 1.3 * voxel[0])


def _least_volume(kind: int, voxel: np.ndarray) -> float:
    radius = _least_radius(kind, voxel)
    across = max(90.0 if kind == BODY else 45.0, 3 * voxel[1], 3 * voxel[2])
    return 4 / 3 * np.pi * radius * across**2


class _Organelle:
    """One organelle: a lumpy ellipsoid, or for vessels a bent string of them."""

    def __init__(
        self, rng: np.random.Generator, kind: int, volume: float, voxel: np.ndarray
    ) -> None:
        self.kind = kind
        beads = int(rng.integers(1, 6)) if kind == VESSEL else 1
        radius = (volume / beads * 0.75 / np.pi) ** (1 / 3)
        long = rng.uniform(1.0, {MITO: 1.9, ALPHA: 1.25, VESSEL: 1.5, BODY: 1.15}[kind])
        tall = max(radius / math.sqrt(long), _least_radius(kind, voxel))
        flat = math.sqrt(radius**3 / tall)
        self.radii = np.array([tall, flat * math.sqrt(long), flat / math.sqrt(long)])
        self.angle = rng.uniform(0, np.pi)
        self.lumps = _Waves(rng, 1.6 * radius, 0.09 if kind == BODY else 0.12)
        step = rng.normal(size=3) * [0.5, 1, 1]
        path = [np.zeros(3)]
        for _ in range(beads - 1):
            step = step + 0.5 * rng.normal(size=3) * [0.5, 1, 1]
            path.append(path[-1] + 1.1 * flat * step / np.linalg.norm(step))
        self.beads = np.array(path) - np.mean(path, axis=0)

    def radius_at(self, points: np.ndarray) -> np.ndarray:
        """Normalised radius at points [..., 3] nm from the centre: below one is inside."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]).T / self.radii
        seen = (points @ turn).astype(np.float32)
        blend = np.zeros(points.shape[:-1], np.float32)
        for bead in (self.beads @ turn).astype(np.float32):
            # A smooth union of the beads: the sum of inverse sixth powers of the distance.
            blend += (np.sum((seen - bead) ** 2, -1) + np.float32(1e-3)) ** -3
        radius = blend ** (-1 / 6)
        # Lumps matter near the surface only.
        close = np.abs(radius - 1) < 0.4
        taper = 1 - (np.abs(radius[close] - 1) / 0.4) ** 2
        radius[close] *= 1 + taper * self.lumps(points[close])
        return radius

    def paint(
        self,
        rng: np.random.Generator,
        centre: np.ndarray,
        labels: np.ndarray,
        shade: np.ndarray,
        voxel: np.ndarray,
        free: float,
    ) -> int:
        """Writes labels and shade in place if at least ``free`` of the organelle lies in free cell.

        Returns:
            The number of voxels painted, 0 if there was no room.
        """
        around = self.beads + centre
        probes = np.clip(np.round(around / voxel), 0, np.array(labels.shape) - 1).astype(int)
        if np.any(labels[tuple(probes.T)] != CELL):
            return 0
        reach = 1.25 * self.radii[[0, 1, 1]] + np.abs(self.beads).max(0) + 30
        low = np.maximum(np.floor((centre - reach) / voxel), 0).astype(int)
        high = np.minimum(np.ceil((centre + reach) / voxel) + 1, labels.shape).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = [np.arange(low[i], high[i]) * voxel[i] - centre[i] for i in range(3)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        radius = self.radius_at(points)
        here = labels[box]
        inside = radius < 1
        mask = inside & (here == CELL)
        count = int(mask.sum())
        if count < 12 or count < free * inside.sum():
            return 0
        names = np.where(mask, self.kind, here)
        if self.kind == BODY:
            core = self._core(rng, points, mask, here.shape, box, labels.shape)
            if not core.any():
                return 0
            names[core] = CORE
        labels[box] = names
        self._shade(rng, points, radius, mask, names, shade[box])
        return count

    def _core(
        self,
        rng: np.random.Generator,
        points: np.ndarray,
        mask: np.ndarray,
        shape: tuple[int, ...],
        box: tuple[slice, ...],
        whole: tuple[int, ...],
    ) -> np.ndarray:
        """The core's voxels: none of its 26 neighbours in the world lies outside the granule."""
        padded = np.pad(mask, 1)
        for axis, (part, size) in enumerate(zip(box, whole, strict=True)):
            ends = np.moveaxis(padded, axis, 0)
            if part.start == 0:
                ends[0] = ends[1]
            if part.stop == size:
                ends[-1] = ends[-2]
        deep = scipy.ndimage.binary_erosion(padded, np.ones((3, 3, 3)))[1:-1, 1:-1, 1:-1]
        deep &= mask
        share = CLASS_SHARES[CORE] / (CLASS_SHARES[BODY] + CLASS_SHARES[CORE])
        wanted = max(1, round(mask.sum() * share * rng.uniform(0.8, 1.2)))
        radius = self.radius_at(points - rng.normal(size=3) * 0.1 * self.radii)
        order = np.sort(radius[deep])
        if not len(order):
            return deep
        return deep & (radius <= order[min(wanted, len(order)) - 1])

    def _shade(
        self,
        rng: np.random.Generator,
        points: np.ndarray,
        radius: np.ndarray,
        mask: np.ndarray,
        names: np.ndarray,
        shade: np.ndarray,
    ) -> None:
        depth = (1 - radius) * float(np.min(self.radii[1:]))
        tone = rng.normal(0, {MITO: 7, ALPHA: 7, VESSEL: 10, BODY: 9}[self.kind])
        texture = np.full(radius.shape, tone)
        if self.kind == MITO:  # cristae: bent pale and dark sheets
            bend = _Waves(rng, 160, 2.2)(points)
            texture += 17 * np.sin(bend + 2 * np.pi * points[..., 1] / rng.uniform(70, 110))
            texture += 12 * _Waves(rng, 60, 1.0)(points)
        # A membrane on the rim; on the outside it darkens the cytoplasm.
        rim = {MITO: 30, ALPHA: 14, VESSEL: 62, BODY: 40}[self.kind]
        edge = -12.0 if self.kind in (VESSEL, BODY) else 6.0
        line = rim * np.exp(-(((depth - edge) / 14) ** 2))
        outside = (names == CELL) & (depth < 0) & (depth > -45)
        shade[outside] = np.clip(shade[outside] - line[outside], -127, 127).astype(np.int8)
        shade[mask] = np.clip(texture - line, -127, 127)[mask].astype(np.int8)
