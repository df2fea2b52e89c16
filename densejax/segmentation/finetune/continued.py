"""Training on: from the members of an earlier run, with corrected blocks as further training data.

A member with seed s starts from the best parameters of the earlier run's ranked member s (0 is the
best; beyond the last it begins again at 0), so what a seed starts from depends on nobody else's
seed. Everything else is a new run's: the optimiser's state, the learning rate and its decay, and
the order of the data. Corrected blocks join the training volume as ``data.extra_windows`` has it;
their voxels weigh what voxels of their class weigh on average in the training volume.

Both sources may grow while a run is interrupted; ``continued.json`` in the run's folder keeps which
members and which corrections it was begun with, and it goes on with those.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.data.extra_windows import cut_patch, extra_arrays
from densejax.data.volumes import open_volume
from densejax.data.windows import Sizes
from densejax.io import write_json
from densejax.segmentation.finetune.corrections import Corrections, labels_once, read_corrections
from densejax.segmentation.runs import TrainedRun, open_run
from densejax.segmentation.sources import Parts
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Member
from densejax.typing import Params, Tree

# What decides a network's parameters and what they mean.
ARCHITECTURE = (
    *("network", "width", "norm", "logit_relu", "released_upsampling"),
    *("strides", "kernels", "neighbours", "block", "deep_supervision"),
)
RECORD = "continued.json"


@dataclass(frozen=True)
class Continued:
    """What a run begins with besides its own settings; empty for a run from scratch.

    Attributes:
      ancestors: parameters that seeds start from, best ranked first.
      data: arrays of corrected blocks, to be added to the sweep's.
      record: what ``continued.json`` says.
    """

    ancestors: tuple[Params, ...] = ()
    data: Mapping[str, np.ndarray] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def begin(self) -> Callable[[Member, Tree], Tree] | None:
        """What the sweep makes of a fresh member's slot."""
        return self._from_ancestor if self.ancestors else None

    def _from_ancestor(self, member: Member, slot: Tree) -> Tree:
        params = self.ancestors[member.seed % len(self.ancestors)]
        # A run that keeps an average of its parameters begins that anew, too.
        averages = {"average": params} if "average" in slot["state"] else {}
        return dict(slot, state=dict(slot["state"], params=params, **averages), best=params)

    def keep(self, workdir: Path) -> None:
        """Write ``continued.json`` at the first start."""
        path = workdir / RECORD
        if self.record and not path.exists():
            write_json(path, self.record)


def read_continued(
    config: Any,
    parts: Parts,
    init_params: Callable[..., Params],
    *,
    weights: np.ndarray,
    window: Sizes,
    output: Sizes,
    workdir: Path,
) -> Continued:
    """Read and check what ``--init_from`` and ``--extra_labels`` name.

    Args:
      config: has these two, ``extra_share`` and the fields of ``ARCHITECTURE``.
      parts: the run's own volumes.
      init_params: fresh parameters from a key, for their structure.
      weights: [z, y, x], error weights of the training volume.
      window: (z, y, x) of the network's input.
      output: (z, y, x) of its output.
      workdir: the run's folder.

    Returns:
      Nothing but an empty record where neither is named.

    Raises:
      FileNotFoundError: the run, its members, the corrections or their volume are not there.
      ValueError: the run trained another network or other classes, no member of it ended well, the
        corrections are of other classes, or there are none.
    """
    path = workdir / RECORD
    before = json.loads(path.read_text()) if path.exists() else {}
    ancestors: tuple[Params, ...] = ()
    data: dict[str, np.ndarray] = {}
    record: dict[str, Any] = {}
    if config.init_from:
        run = Path(config.init_from)
        with _naming(run):
            earlier = open_run(run)
        names = before.get("init_from", {}).get("members") or earlier.members
        _check_same_network(config, earlier, parts.class_names)
        template = jax.eval_shape(init_params, jax.random.key(0))
        with _naming(run):
            ancestors = tuple(restore_tree(run / "seeds" / n / "best", template) for n in names)
        record["init_from"] = {"run": str(run.absolute()), "members": list(names)}
        print(f"starts from  {len(names)} members of {run}, best first: {', '.join(names)}")
    if config.extra_labels:
        percent_of(config.extra_share)
        folder = Path(config.extra_labels)
        corrections = read_corrections(
            folder, collections=before.get("extra_labels", {}).get("collections")
        )
        _check_corrections(folder, corrections, parts)
        table = class_weights(parts, weights)
        data = _correction_data(corrections, table, window=window, output=output)
        record["extra_labels"] = {
            "folder": str(folder.absolute()),
            "collections": list(corrections.collections),
        }
        _print_corrections(folder, corrections, data, config.extra_share)
    return Continued(ancestors, data, record)


def architecture_of(config: Any, run: Path) -> dict[str, Any]:
    """The fields of ``ARCHITECTURE`` that a run was begun with.

    Args:
      config: of the experiment, for what its older records mean.
      run: the folder.

    Raises:
      FileNotFoundError: there is no run in it.
    """
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a segmentation run")
    record = getattr(config, "upgrade", dict)(json.loads(path.read_text()))
    return {
        name: tuple(record[name]) if isinstance(record[name], list) else record[name]
        for name in ARCHITECTURE
        if name in record
    }


@contextmanager
def _naming(run: Path) -> Iterator[None]:
    """Put the flag before what is wrong with the earlier run."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--init_from={run}: {error}") from error


def _check_same_network(config: Any, earlier: TrainedRun, class_names: Sequence[str]) -> None:
    """Refuse an earlier run of another network or of other classes."""
    before = architecture_of(config, earlier.folder)
    differing = [
        f"{name} was {before.get(name, 'absent')} and is {getattr(config, name)}"
        for name in ARCHITECTURE
        if before.get(name) != getattr(config, name)
    ]
    if earlier.class_names != tuple(class_names):
        differing.append(
            f"classes were {', '.join(earlier.class_names)} and are {', '.join(class_names)}"
        )
    if differing:
        raise ValueError(
            f"--init_from={earlier.folder} trained another network: {'; '.join(differing)}"
        )


def _check_corrections(folder: Path, corrections: Corrections, parts: Parts) -> None:
    """Refuse corrections with other classes, or none; warn of voxels of another size."""
    subject = corrections.subject
    if subject.class_names != tuple(parts.class_names):
        raise ValueError(
            f"--extra_labels={folder}: its classes are {', '.join(subject.class_names)}; "
            f"expected {', '.join(parts.class_names)}"
        )
    if not corrections.blocks:
        raise ValueError(
            f"--extra_labels={folder}: nothing was taken back yet (experiments.correct --collect)"
        )
    own = parts.train.voxel_nm
    ratios = [a / b for a, b in zip(subject.voxel_nm, own, strict=True)]
    if max(max(ratios), 1 / min(ratios)) > 1.25:
        warnings.warn(
            f"--extra_labels={folder}: voxels of {subject.voxel_nm} nm (z, y, x) beside training "
            f"voxels of {own} nm",
            stacklevel=2,
        )


def class_weights(parts: Parts, weights: np.ndarray) -> np.ndarray:
    """Mean error weight of the training volume's voxels of each class, [c] float64."""
    labels = parts.train.labels
    known, classes = labels >= 0, len(parts.class_names)
    counts = np.bincount(labels[known], minlength=classes)
    totals = np.bincount(labels[known], weights=weights[known], minlength=classes)
    return totals / np.maximum(counts, 1)


def _correction_data(
    corrections: Corrections, table: np.ndarray, *, window: Sizes, output: Sizes
) -> dict[str, np.ndarray]:
    """The arrays of all corrected blocks, a voxel of class c weighing ``table[c]``."""
    subject = corrections.subject
    volume = open_volume(subject.volume, voxel_nm=subject.voxel_nm, dataset=subject.dataset)
    if volume.array.shape != subject.shape:
        raise ValueError(
            f"{subject.volume}: shape {volume.array.shape}; expected {subject.shape}, the volume "
            "that was corrected"
        )
    patches = [
        cut_patch(
            volume.array,
            labels,
            block.offset,
            input_window=window,
            output_window=output,
            mean=block.mean,
            deviation=block.deviation,
            name=volume.path,
        )
        for block, labels in zip(corrections.blocks, labels_once(corrections.blocks), strict=True)
        if (labels >= 0).any()
    ]
    return extra_arrays(patches, class_weights=table)


def _print_corrections(
    folder: Path, corrections: Corrections, data: Mapping[str, np.ndarray], share: float
) -> None:
    """How many blocks and voxels join the training, and how large they are on the device."""
    voxels = int(np.sum(data["extra_labels"] >= 0))
    size = sum(array.nbytes for array in data.values())
    print(
        f"corrections  {folder}: {len(corrections.blocks)} blocks, {voxels:,} voxels, "
        f"{100 * share:g} % of the windows, {size / 1e6:.0f} MB"
    )
    found = sorted(path.name for path in (folder / "collected").glob("[0-9]*"))
    newer = sorted(set(found) - set(corrections.collections))
    if newer:
        print(f"             not used, taken back since this run began: {', '.join(newer)}")


def percent_of(share: float) -> int:
    """A share of windows as whole hundredths.

    Raises:
      ValueError: it is not 0.01, 0.02, ... 1.
    """
    percent = round(100 * share)
    if not 1 <= percent <= 100 or abs(100 * share - percent) > 1e-6:
        raise ValueError(f"--extra_share={share}; expected whole hundredths from 0.01 to 1")
    return percent
