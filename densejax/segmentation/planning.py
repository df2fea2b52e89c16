"""Plan a segmentation from its data: network, windows, sampling, steps, each with its reason.

After nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), which plans from a fingerprint
of the data. Departures: the finest scale may be coarser than the voxels (``stem``), a CPU's width
follows from it, and batch and steps are small. What was measured for them stands in
``experiments/results/README.md``. Whatever the user has asked for wins, and what depends on it
follows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from densejax.population import memory_limit
from densejax.segmentation.sources import Parts
from densejax.segmentation.splits import PARTS

RECIPE_VERSION = 1
"""Raised whenever the same data would be planned otherwise."""

FLAT_DEPTH = 5  # sections of a window, up to which its planes alone are turned
FLAT_FROM = 3.0  # times coarser along z than in the plane: sections are labelled for themselves
COARSE_ENOUGH = 0.7  # IoU of every class's labels brought to coarser voxels and back
LARGEST_PLANE = 256  # edge of a training window on the finest scale's own grid, in 2-D
LARGEST_CUBE = 96  # in 3-D
SMALLEST_SCALE = 8  # voxels of a window's edge at the coarsest scale, at least
MOST_SCALES = 5
MOST_WIDTH = 256
RARE_SHARE = 0.02  # of the labelled voxels, below which a class is sought
LARGEST_TILE = 1024  # edge of a window in prediction
BYTES_A_VALUE = 4
LIVE_TENSORS = 14  # of a scale's size that a step holds, a rough guess: the compiler's own follows
UPDATES = 2000  # of a member where no time is given


@dataclass(frozen=True)
class Fingerprint:
    """What of the data and the machine decides a plan.

    Attributes:
      train: (z, y, x) of the training volume in voxels.
      smallest: (z, y, x), the least along each axis over training, evaluation and test.
      voxel_nm: (z, y, x), of several training volumes the median.
      counts: labelled voxels of each class in training.
      coarse: factor (2, 4) -> the least IoU over classes of labels brought to voxels so much larger
        in the plane and back.
      memory: bytes that a device may use.
      devices: how many.
      platform: ``cpu``, ``gpu`` or ``tpu``.
    """

    train: tuple[int, int, int]
    smallest: tuple[int, int, int]
    voxel_nm: tuple[float, float, float]
    counts: tuple[int, ...]
    coarse: Mapping[int, float]
    memory: int
    devices: int
    platform: str

    @property
    def anisotropy(self) -> float:
        """How many times longer a voxel is along z than in the plane."""
        return self.voxel_nm[0] / min(self.voxel_nm[1:])


@dataclass(frozen=True)
class Plan:
    """Values by flag, and why each is what it is."""

    values: Mapping[str, Any]
    reasons: Mapping[str, str]

    def lines(self) -> list[str]:
        """The plan as text, a choice a line."""
        width = max(len(name) for name in self.values)
        return [
            f"  --{name:<{width}} {_text(value):<16} {self.reasons[name]}"
            for name, value in self.values.items()
        ]


def fingerprint(parts: Parts) -> Fingerprint:
    """Look at the volumes and the devices; the labels are read once."""
    volumes = [volume for part in PARTS for volume in parts.volumes(part)]
    smallest = tuple(min(axis) for axis in zip(*(v.images.shape for v in volumes), strict=True))
    trained, classes = parts.volumes("train"), len(parts.class_names)
    counts = sum(
        np.bincount(one.labels[one.labels >= 0].ravel(), minlength=classes) for one in trained
    )
    devices = jax.local_devices()
    return Fingerprint(
        train=_three(parts.train.labels.shape),
        smallest=_three(smallest),
        voxel_nm=_middle([one.voxel_nm for one in trained]),
        counts=tuple(np.asarray(counts).tolist()),
        coarse={
            factor: min(coarse_iou(one.labels, factor, classes=classes) for one in trained)
            for factor in (2, 4)
        },
        memory=memory_limit(devices),
        devices=len(devices),
        platform=devices[0].platform,
    )


def _middle(sizes: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The median along each axis; of one it is that one, to the bit."""
    z, y, x = np.median(np.array(sizes, np.float64), axis=0).tolist()
    return z, y, x


def coarse_iou(labels: np.ndarray, factor: int, *, classes: int) -> float:
    """The least IoU over classes of labels after a majority vote in squares of their planes.

    It bounds what a network could reach that gives one label to ``factor`` x ``factor`` voxels; a
    network that unfolds its logits (``PlannedUNet``) may do better.

    Args:
      labels: int [z, y, x], -1 where not labelled; a last row or column that fills no square is
        left out.
      factor: edge of a square in voxels.
      classes: c.

    Returns:
      In 0 to 1; 0 where the planes are smaller than a square.
    """
    z, y, x = labels.shape
    if min(y, x) < factor:
        return 0.0
    inner = labels[:, : y // factor * factor, : x // factor * factor]
    squares = inner.reshape(z, y // factor, factor, x // factor, factor)
    votes = np.stack([(squares == index).sum((2, 4)) for index in range(classes)])
    major = votes.argmax(0)
    least = 1.0
    for index in range(classes):
        chosen = major == index
        # Of a square that gets this label, its voxels of the class are right and the others wrong.
        right = int(votes[index][chosen].sum())
        given = int(votes[:, chosen].sum())
        union = given + int(votes[index].sum()) - right
        if union:
            least = min(least, right / union)
    return least


def plan(data: Fingerprint, asked: Mapping[str, Any]) -> Plan:
    """Decide what a run needs.

    Args:
      data: of the volumes and the machine.
      asked: values by flag that the user has given; they stand.

    Raises:
      ValueError: what was asked for does not fit the data, or does not go together; the message
        names the smallest change that would.
    """
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def settle(name: str, value: Any, why: str) -> Any:
        given = asked.get(name)
        values[name], reasons[name] = (value, why) if given is None else (given, "asked for")
        return values[name]

    network = settle("network", "planned_unet", "its scales, kernels and widths fit the data")
    own = network == "planned_unet"
    flat = True
    stem = 1
    if own:
        depth = settle(
            "dimensions",
            "2d" if data.anisotropy >= FLAT_FROM else "3d",
            f"voxels are {data.anisotropy:.2g} times as long along z as in the plane",
        )
        flat = depth == "2d"
        stem = settle("stem", *_stem(data, asked))
        settle("neighbours", 0, "neighbouring sections as channels gained nothing on VNC")
    width = settle("width", *_width(data, network, stem))
    window = settle("window", *_window(data, network, flat, stem, values.get("neighbours", 0)))
    if own:
        settle("strides", *_strides(data, flat, stem, window))
        kernels = ("1x3x3",) * len(values["strides"])
        if not flat:
            kernels = tuple(_kernels(data, values["strides"]))
        settle("kernels", kernels, "3 along an axis once its voxels are within twice the finest")
        settle("block", "plain", "the least work a voxel")
        settle("deep_supervision", False, "the least work a step")
    settle("norm", "instance", "windows are large enough for moments of their own")
    batch = settle("batch", *_batch(data, flat, window))
    _check_window(data, window, values, network)
    _check_memory(data, window, values, network, width, batch)
    rare = [count / max(sum(data.counts), 1) for count in data.counts]
    settle(
        "class_share",
        0.5 if min(rare) < RARE_SHARE else 0.25,
        f"the rarest class has {100 * min(rare):.2g} % of the labelled voxels",
    )
    settle("reject_empty", 0.0, "windows around classes show something already")
    settle("error_weights", "none", "Dice balances the classes")
    settle("loss", "dice", "soft Dice of the batch beside cross-entropy")
    settle("optimiser", "adamw", "its steps suit a short training")
    settle("schedule", "polynomial", "falls to 0 when the steps end")
    settle("learning_rate", 3e-3, "0.08 MIoU above 1e-3 on VNC at 180 CPU seconds")
    settle("steps", UPDATES, "where no --minutes are given")
    tile = _tile(data, window, values["strides"], flat) if own else _three(window)
    why = "whole sections where they fit: norms see all of them" if own and flat else "as trained"
    tile = settle("prediction_window", tile, why)
    square = tile[1] == tile[2]
    views = "turns" if square and tile[0] <= FLAT_DEPTH else "flips"
    settle("views", views, "sections have no preferred direction")
    settle("blend", "gaussian", "seams weigh least")
    settle("ensemble", "largest", "a few voxels of a rare class decide the best")
    return Plan(values, reasons)


def _stem(data: Fingerprint, asked: Mapping[str, Any]) -> tuple[int, str]:
    if asked.get("strides"):
        first = parse_sizes(asked["strides"][0])
        if asked.get("stem") not in (None, first[1]):
            raise ValueError(
                f"--stem={asked['stem']} and --strides={','.join(asked['strides'])} disagree: the "
                "first stride is the stem; give one of them"
            )
        return first[1], "the first of --strides"
    for factor in (4, 2):
        if data.coarse.get(factor, 0.0) >= COARSE_ENOUGH and min(data.smallest[1:]) >= 16 * factor:
            kept = f"labels {factor} times coarser keep an IoU of {data.coarse[factor]:.2f} or more"
            return factor, f"{kept}: the same compute sees {factor**2} times the area"
    return 1, f"labels 2 times coarser keep an IoU of only {data.coarse.get(2, 0):.2f} for a class"


def _width(data: Fingerprint, network: str, stem: int) -> tuple[int, str]:
    if network != "planned_unet":
        return (9 if network == "unet" else 8), "about 0.6 million parameters"
    if data.platform == "cpu":
        return 8 * stem, "a CPU makes several steps a second at this width and stem"
    return max(32, 8 * stem), "twice a CPU's, for an accelerator; not measured"


def _window(
    data: Fingerprint, network: str, flat: bool, stem: int, neighbours: int
) -> tuple[tuple[int, int, int], str]:
    if network != "planned_unet":
        edge = _multiple(min(128, *data.smallest[1:]), 16)
        return (min(5, data.smallest[0]), edge, edge), "five sections, as published, of wide planes"
    step = 16 * stem if flat else 8 * stem
    if flat:
        edges = [_multiple(min(LARGEST_PLANE, size), step) for size in data.smallest[1:]]
        edge = min(edges)
        return (
            1 + 2 * neighbours,
            edge,
            edge,
        ), f"as large as the sections allow, to {LARGEST_PLANE}"
    edge = _multiple(min(LARGEST_CUBE, *data.smallest[1:]), step)
    deep = max(1, round(edge / max(data.anisotropy, 1)))
    z = min(data.smallest[0], _multiple(deep, 4) if deep >= 4 else deep)
    return (z, edge, edge), "about a cube in nanometres that the volumes hold"


def _strides(
    data: Fingerprint, flat: bool, stem: int, window: Sequence[int]
) -> tuple[tuple[str, ...], str]:
    """Pool an axis while its spacing is within twice the finest (nnU-Net) and it has room."""
    deep = not flat and data.anisotropy < 2 and window[0] % stem == 0
    strides = [(stem if deep else 1, stem, stem)]
    spacing = [s * f for s, f in zip(data.voxel_nm, strides[0], strict=True)]
    sizes = [n // f for n, f in zip(window, strides[0], strict=True)]
    while len(strides) < MOST_SCALES - (1 if stem > 1 else 0):
        step = [
            2
            if spacing[axis] < 2 * min(spacing)
            and sizes[axis] >= 2 * (SMALLEST_SCALE if axis else 2)
            and sizes[axis] % 2 == 0
            and not (flat and axis == 0)
            else 1
            for axis in range(3)
        ]
        if max(step[1:]) == 1:
            break
        spacing = [s * f for s, f in zip(spacing, step, strict=True)]
        sizes = [n // f for n, f in zip(sizes, step, strict=True)]
        strides.append((step[0], step[1], step[2]))
    texts = tuple("x".join(map(str, stride)) for stride in strides)
    return texts, f"{len(texts)} scales, until a window is {sizes[1]} voxels wide"


def _kernels(data: Fingerprint, strides: Sequence[str]) -> list[str]:
    spacing = list(data.voxel_nm)
    kernels = []
    for stride in strides:
        spacing = [s * int(f) for s, f in zip(spacing, stride.split("x"), strict=True)]
        kernels.append("x".join("3" if s <= 2 * min(spacing) else "1" for s in spacing))
    return kernels


def _batch(data: Fingerprint, flat: bool, window: Sequence[int]) -> tuple[int, str]:
    if data.platform != "cpu":
        return 8 if flat else 2, "more work for an accelerator; not measured"
    area = LARGEST_PLANE**2 * 2
    most = max(2, min(8, area // (window[1] * window[2] * window[0])))
    return most, "two windows or more, so that Dice meets several classes"


def _tile(
    data: Fingerprint, window: Sequence[int], strides: Sequence[str], flat: bool
) -> tuple[int, int, int]:
    whole = [math.prod(int(s.split("x")[axis]) for s in strides) for axis in range(3)]
    if not flat:
        return _three(window)
    edges = [
        max(size, _multiple(min(LARGEST_TILE, least), step))
        for size, least, step in zip(window[1:], data.smallest[1:], whole[1:], strict=True)
    ]
    edge = min(edges)
    return int(window[0]), edge, edge


def _check_window(
    data: Fingerprint, window: Sequence[int], values: Mapping[str, Any], network: str
) -> None:
    if len(window) != 3 or any(w > n for w, n in zip(window, data.smallest, strict=True)):
        fits = tuple(min(w, n) for w, n in zip(window, data.smallest, strict=False))
        raise ValueError(
            f"--window={','.join(map(str, window))} does not fit into the smallest of the volumes, "
            f"{data.smallest} voxels (z, y, x); --window={','.join(map(str, fits))} would, or "
            "other --sections"
        )
    if network != "planned_unet":
        return
    steps = [math.prod(parse_sizes(s)[axis] for s in values["strides"]) for axis in range(3)]
    lost = 2 * values["neighbours"]
    depth = window[0] - lost
    if depth < 1:
        raise ValueError(
            f"--window={','.join(map(str, window))} with --neighbours={values['neighbours']}: "
            f"expected at least {lost + 1} sections"
        )
    if any(size % step for size, step in zip((depth, *window[1:]), steps, strict=True)):
        near = [_multiple(w, step) for w, step in zip((depth, *window[1:]), steps, strict=True)]
        fits = (near[0] + lost, *near[1:])
        raise ValueError(
            f"--window={','.join(map(str, window))}: expected multiples of {tuple(steps)}, the "
            f"product of --strides; --window={','.join(map(str, fits))} would do"
        )


def _check_memory(
    data: Fingerprint,
    window: Sequence[int],
    values: Mapping[str, Any],
    network: str,
    width: int,
    batch: int,
) -> None:
    """Refuse what is beyond the memory by an estimate; the compiler's own number follows."""
    if network != "planned_unet":
        return
    voxels, bytes_needed = float(batch * math.prod(window)), 0.0
    for scale, stride in enumerate(values["strides"]):
        voxels /= math.prod(int(f) for f in stride.split("x"))
        channels = min(width * 2**scale, MOST_WIDTH)
        bytes_needed += LIVE_TENSORS * BYTES_A_VALUE * voxels * channels
    if bytes_needed > data.memory:
        fits = max(1, int(batch * data.memory / bytes_needed))
        change = f"--batch={fits}" if fits < batch else f"--width={max(1, width // 2)}"
        raise ValueError(
            f"a step of {batch} windows of {tuple(window)} at width {width} needs about "
            f"{bytes_needed / 1e9:.1f} GB and a device may use {data.memory / 1e9:.1f} GB; "
            f"{change} would fit"
        )


@dataclass(frozen=True)
class Cost:
    """What a probe has measured on this machine, in seconds of wall time.

    Attributes:
      step: of one step of one member on a device, while all devices work.
      evaluation: of one evaluation of one member.
      voxel: of predicting a voxel with one member on a device, all views.
    """

    step: float
    evaluation: float
    voxel: float


@dataclass(frozen=True)
class TimePlan:
    """How a given time is spent.

    Attributes:
      steps: of each member.
      evaluations: of each member while it trains.
      predicting: seconds that are kept for prediction and report.
    """

    steps: int
    evaluations: int
    predicting: float


REPORT_SECONDS = 15.0  # pictures and tables
MARGIN = 0.93  # a machine is never as fast as in its probe


def plan_time(
    seconds: float, cost: Cost, *, members: int, devices: int, voxels: int, log_every: int
) -> TimePlan:
    """Spend the seconds that are left: prediction is kept free, the rest are steps.

    Args:
      seconds: that are left.
      cost: of the pieces.
      members: that train.
      devices: among which they are divided.
      voxels: that every member predicts at the end.
      log_every: the steps are a multiple of it.

    Raises:
      ValueError: not even one evaluation fits; the message says what time would do.
    """
    waves = math.ceil(members / devices)
    predicting = waves * cost.voxel * voxels + REPORT_SECONDS
    left = MARGIN * seconds - predicting
    least = waves * (log_every * cost.step + cost.evaluation)
    if left < least:
        needed = (predicting + least) / MARGIN
        raise ValueError(
            f"--minutes: {seconds / 60:.1f} minutes are left after setting up, and {members} "
            f"members on {devices} devices need {needed / 60:.1f} to train {log_every} steps, "
            "be evaluated once and predict; give at least "
            f"{math.ceil((needed - seconds) / 60)} minutes more"
        )
    evaluations = 10
    while evaluations > 1 and waves * evaluations * cost.evaluation > 0.1 * left:
        evaluations -= 1
    steps = int((left / waves - evaluations * cost.evaluation) / cost.step)
    return TimePlan(max(log_every, steps // log_every * log_every), evaluations, predicting)


def members_for(minutes: float, *, devices: int) -> int:
    """How many members a time is divided among: one a device, and two at least.

    At equal cost one network that trains longer was better than several on the VNC stack at every
    length measured, to 2,600 CPU seconds (``experiments/results``). A second member is kept for
    what only it can show: where two seeds disagree.

    Args:
      minutes: of the whole run; 0 where none is given, and then a device has two.
      devices: that train.
    """
    return max(2, devices) if minutes else 2 * devices


def parse_sizes(text: str) -> tuple[int, int, int]:
    """(z, y, x) from text such as ``1x3x3``.

    Raises:
      ValueError: it is not three positive numbers with an x between.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r}: expected three positive numbers z, y, x such as 1x3x3")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _multiple(size: int, step: int) -> int:
    return max(step, size // step * step)


def _three(values: Any) -> tuple[int, int, int]:
    z, y, x = (int(value) for value in values)
    return z, y, x


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
