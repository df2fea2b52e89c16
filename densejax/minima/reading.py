"""The minima that a run has left behind: what they score, and how wide their basins are."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from densejax.io import read_npz, write_npz
from densejax.landscape.basins import LogVolume, Radii, log_volume, radii_of_many
from densejax.landscape.objective import over_batches, recalibrated
from densejax.losses import weighted_cross_entropy
from densejax.minima.point_nets import SETS, PointNet, load_problem
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Outcome, read_metrics
from densejax.typing import Array, Batch, Key, Params, Tree

GROUP = 20  # minima whose radii are searched in one program
# Of the filters' norms. Poisoned minima have radii of a thousandth, the default first step of
# ``radii_of_many``, below which a crossing need not be the first.
FIRST_STEP = 1e-5
RUNNING = ("chunk", "devices", "progress")
MEASURES = ("train_loss", "train_accuracy", "test_accuracy", "poison_accuracy")
MEASURED = (
    "radius",
    "radius_median",
    "censored",
    "log_volume",
    "jensen",
    "jensen_error",
    "maximum",
    "effective_samples",
    "low",
    "high",
)


@dataclass(frozen=True)
class Minimum:
    """Where one instance ended.

    Attributes:
      name: of its folder, such as ``0003,poison=0.2``.
      seed: of the instance.
      settings: in which instances differ, such as ``poison``.
      variables: its last parameters, NumPy.
      measures: ``train_loss``, and ``train_accuracy``, ``test_accuracy`` and ``poison_accuracy``
        (of the true labels) in 0..1, not-a-number where there are no such points.
    """

    name: str
    seed: int
    settings: Mapping[str, float]
    variables: Params
    measures: Mapping[str, float]

    @property
    def poison(self) -> float:
        """Its share of poison; 0 where nothing is said."""
        return float(self.settings.get("poison", 0.0))


class HasLoss(Protocol):
    """What basins are measured of: a network with its points, or with its pictures."""

    def loss(self, variables: Params) -> jax.Array:
        """The training loss, [] float."""
        ...


@dataclass(frozen=True, eq=False)
class PictureLoss:
    """The mean cross-entropy of a set of pictures as a function of a network's variables.

    A point is all variables, ``{"params": ..., "batch_stats": ...}``: so minima with moments of
    their own share one program. Directions leave the moments alone, as they leave biases.

    Attributes:
      network: ``(variables, [b, y, x, c], train=..., mutable=...) -> (logits [b, c], out)``.
      images: [n, y, x, c] uint8.
      labels: [n] int32.
      prepare: stored pictures to what the network takes.
      batch: pictures at once.
      calibration: [m, y, x, c] uint8, by which the norm's moments are computed again at each point,
        ``batch`` at a time (a remainder is left out); None: each minimum's own are kept.
    """

    network: Callable[..., Any]
    images: Array
    labels: Array
    prepare: Callable[[Array], jax.Array]
    batch: int = 500
    calibration: Array | None = None

    def __post_init__(self) -> None:
        if self.calibration is not None and len(self.calibration) < self.batch:
            raise ValueError(
                f"{len(self.calibration)} pictures to calibrate by in batches of {self.batch}: "
                "expected one batch or more"
            )

    def measures(self, variables: Params) -> dict[str, jax.Array]:
        """Loss and accuracy, float32 scalars."""
        if self.calibration is None:
            return self._plain(variables)
        count = len(self.calibration) // self.batch
        batches = np.asarray(self.calibration)[: count * self.batch]
        loss_fn = recalibrated(
            self._applied,
            batches.reshape(count, self.batch, *batches.shape[1:]),
            self._plain,
            variables["batch_stats"],
        )
        return loss_fn(variables["params"])

    def loss(self, variables: Params) -> jax.Array:
        """Loss, a float32 scalar."""
        return self.measures(variables)["loss"]

    def _applied(self, variables: Params, images: Array, **options: Any) -> Any:
        return self.network(variables, self.prepare(images), **options)

    def _plain(self, variables: Params) -> dict[str, jax.Array]:
        def some(variables: Params, part: Batch) -> dict[str, jax.Array]:
            logits, _ = self._applied(variables, part["images"])
            labels = jnp.asarray(part["labels"])
            hits = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
            return {"loss": weighted_cross_entropy(logits, labels), "accuracy": hits}

        data = {"images": self.images, "labels": self.labels}
        return over_batches(some, data, size=self.batch)(variables)


@dataclass(frozen=True)
class Basin:
    """A minimum and its surroundings.

    Attributes:
      minimum: of which.
      radii: None where the training loss is not below the cutoff: there is no basin.
      volume: of the radii; None without an edge, where all of them are censored.
    """

    minimum: Minimum
    radii: Radii | None = None
    volume: LogVolume | None = None

    @property
    def radius(self) -> float:
        """Mean radius over all directions; a lower bound if some are censored."""
        return float(self.radii.radius.mean()) if self.radii is not None else float("nan")

    @property
    def log_volume(self) -> float:
        """The estimate, natural logarithm."""
        return self.volume.estimate if self.volume is not None else float("nan")


def read_minima(workdir: Path) -> tuple[PointNet, list[Minimum], list[str]]:
    """All minima of a run's folder, in the order of their settings, then seeds.

    Args:
      workdir: folder of a run of swissroll, minefield or rings.

    Returns:
      The problem, the minima, and the names of instances that failed.

    Raises:
      FileNotFoundError: the folder holds no problem or no instance that is done or failed.
      ValueError: a folder's name or its arrays are of another form.
    """
    problem = load_problem(workdir)
    folders = sorted((Path(workdir) / "seeds").glob("*"))
    done = [folder for folder in folders if (folder / "DONE").exists()]
    failed = [folder.name for folder in folders if (folder / "FAILED").exists()]
    if not done and not failed:
        raise FileNotFoundError(f"{workdir}/seeds holds no instance that is done or failed")
    template = jax.eval_shape(problem.init_variables, jax.random.key(0))
    score = jax.jit(lambda variables: scores(problem, variables))
    minima = []
    for folder in done:
        seed, settings = _parsed(folder)
        variables = restore_tree(folder / "last", template)
        measures = {name: float(value) for name, value in score(variables).items()}
        minima.append(Minimum(folder.name, seed, settings, variables, measures))
    minima.sort(key=lambda one: (sorted(one.settings.items()), one.seed))
    return problem, minima, failed


def read_picture_minima(
    outcomes: Sequence[Outcome],
    template: Params,
    loss: PictureLoss,
    *,
    settings: Mapping[str, float] | None = None,
) -> list[Minimum]:
    """Where the members of a sweep of ``PoisonTask`` ended; failed ones are left out.

    Args:
      outcomes: of the sweep.
      template: shapes of the variables.
      loss: gives ``train_loss``, by which a basin is cut; the accuracies are those of the sweep's
        last evaluation, of its whole sets.
      settings: of members that have none, such as ``{"poison": 0.0}``.

    Returns:
      The minima, in the order of the outcomes.

    Raises:
      ValueError: a member has no evaluation, or its arrays are of another form.
    """
    measure = jax.jit(loss.loss)
    minima = []
    for outcome in outcomes:
        if outcome.status != "DONE":
            continue
        variables = restore_tree(outcome.folder / "last", template)
        rows = [r for r in read_metrics(outcome.folder / "metrics.jsonl") if "train_loss" in r]
        if not rows:
            raise ValueError(f"{outcome.folder}: no evaluation in metrics.jsonl; expected one")
        measures = {name: float(rows[-1].get(name, "nan")) for name in MEASURES[1:]}
        measures["train_loss"] = float(measure(variables))
        found = dict(settings or {}) | dict(outcome.member.settings)
        name = outcome.member.name if outcome.member.settings else f"{outcome.member.name},natural"
        minima.append(Minimum(name, outcome.member.seed, found, variables, measures))
    return minima


def scores(problem: PointNet, variables: Params) -> dict[str, jax.Array]:
    """The measures of a ``Minimum`` as arrays."""
    found = {"train_loss": problem.loss(variables)}
    for name in SETS:
        found[f"{name}_accuracy"] = problem.accuracy(variables, getattr(problem, name))
    return found


def _parsed(folder: Path) -> tuple[int, dict[str, float]]:
    """Seed and settings of a member's folder."""
    seed, *parts = folder.name.split(",")
    try:
        settings = {name: float(value) for name, value in (part.split("=") for part in parts)}
        return int(seed), settings
    except ValueError:
        raise ValueError(f"{folder}: expected a name such as 0003,poison=0.2") from None


def stacked(minima: Sequence[Minimum]) -> Params:
    """Variables of many, [k, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(one.variables for one in minima))


def measure_basins(
    key: Key,
    problem: HasLoss,
    minima: Sequence[Minimum],
    *,
    folder: Path,
    directions: int = 3000,
    cutoff: float = 0.1,
    first_step: float = FIRST_STEP,
    bootstrap: int = 200,
    **options: Any,
) -> list[Basin]:
    """Radii and log-volumes; the radii of each minimum are kept in a file and not searched again.

    Args:
      key: of the directions, the same for all minima (common random numbers).
      problem: whose training loss is cut.
      minima: of that problem.
      folder: takes a file a minimum, in a folder for each number of directions and cutoff; one
        that is of other settings is refused.
      directions: of each minimum.
      cutoff: of the training loss.
      first_step: smallest distance that is looked at.
      bootstrap: resamples of the volumes' intervals.
      options: of ``radii_of_many``, such as ``geometry`` or ``span``.

    Returns:
      One basin a minimum, in their order.

    Raises:
      ValueError: a file is of other settings, or as ``radii_of_many``.
    """
    folder = folder / f"{directions}_to_{cutoff:g}"
    setting = {"directions": directions, "cutoff": cutoff, "first_step": first_step}
    # How the search is run changes no radius.
    setting |= {name: v for name, v in options.items() if name not in RUNNING}
    setting["key"] = np.asarray(jax.random.key_data(key)).tolist()
    text = ";".join(f"{name}={value}" for name, value in sorted(setting.items()))
    deep = [one for one in minima if one.measures["train_loss"] < cutoff]
    missing = [one for one in deep if not (folder / f"{one.name}.npz").exists()]
    for start in range(0, len(missing), GROUP):
        group = missing[start : start + GROUP]
        print(f"radii of minima {start + 1} to {start + len(group)} of {len(missing)}", flush=True)
        found = radii_of_many(
            key,
            problem.loss,
            stacked(group),
            directions=directions,
            cutoff=cutoff,
            first_step=first_step,
            **options,
        )
        for one, radii in zip(group, found, strict=True):
            _write(folder / f"{one.name}.npz", radii, text)
    kept = {one.name: _read(folder / f"{one.name}.npz", text) for one in deep}
    basins = []
    for one in minima:
        found_radii, volume = kept.get(one.name), None
        if found_radii is not None and not found_radii.censored.all():
            volume = log_volume(key, found_radii, bootstrap=bootstrap)
        basins.append(Basin(one, found_radii, volume))
    return basins


def column(basins: Sequence[Basin], name: str) -> np.ndarray:
    """[k] float64 of a measure, a number of the basin (``MEASURED``) or ``poison`` or ``seed``."""
    return np.array([value_of(one, name) for one in basins], np.float64)


def value_of(basin: Basin, name: str) -> float:
    """One entry of ``column``; not-a-number of what was not measured."""
    minimum, radii, volume = basin.minimum, basin.radii, basin.volume
    if name in ("poison", "seed"):
        return float(getattr(minimum, name))
    if name in minimum.measures:
        return minimum.measures[name]
    if name == "radius":
        return basin.radius
    if radii is not None and name == "radius_median":
        return float(np.median(radii.radius))
    if radii is not None and name == "censored":
        return float(radii.censored.mean())
    if volume is None or name in ("radius_median", "censored"):
        return math.nan
    if name in ("low", "high"):
        return volume.interval[name == "high"]
    return float(getattr(volume, "estimate" if name == "log_volume" else name))


def _write(path: Path, radii: Radii, setting: str) -> None:
    arrays: Tree = {f.name: getattr(radii, f.name) for f in dataclasses.fields(radii)}
    write_npz(path, {"setting": setting, **arrays})


def _read(path: Path, setting: str) -> Radii:
    arrays = read_npz(path)
    before = str(arrays.pop("setting", "nothing"))
    if before != setting:
        raise ValueError(f"{path} holds radii of {before}; asked for are {setting}")
    return Radii(**{name: a if a.ndim else a.item() for name, a in arrays.items()})
