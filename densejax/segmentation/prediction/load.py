"""A run as one object: from an array to labels, probabilities and uncertainty."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from densejax.data.datasets import standardise
from densejax.ensembles.predict import member_probabilities, predict_volume
from densejax.ensembles.views import Views
from densejax.instances import memory_limit
from densejax.models.layers import draw_parameters
from densejax.segmentation.networks import network_of
from densejax.segmentation.prediction.job import Architecture, warn_of_voxels
from densejax.segmentation.prediction.trained_run import TrainedRun, open_run, read_config
from densejax.segmentation.recipes import RecipeOptions
from densejax.segmentation.sources import three
from densejax.typing import Array


@dataclass(frozen=True)
class Segmentation:
    """What an ensemble says of a volume.

    Attributes:
      labels: [z, y, x] int32, the likeliest class by the mean probabilities of all members.
      probabilities: [z, y, x, c] float32, that mean.
      entropy: [z, y, x] float32, of that mean, divided by log(c): 0 to 1.
      disagreement: [z, y, x] float32, share of members whose own label is another: 0 to 1.
      class_names: names of the c classes.
      voxel_nm: (z, y, x).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    entropy: np.ndarray
    disagreement: np.ndarray
    class_names: tuple[str, ...]
    voxel_nm: tuple[float, float, float]


class Ensemble:
    """The best members of a run, ready to segment arrays.

    Attributes:
      run: what is known of it: class names, voxel size, members and their scores.
      members: names of those that predict, best first.
    """

    def __init__(self, folder: str | Path, *, top_k: int | None = None) -> None:
        """Read a run's folder; see ``load``."""
        self.run = open_run(folder)
        self._settings = read_config(RecipeOptions, folder, part=True)
        count = len(self.run.members) if top_k is None else top_k
        if not 1 <= count <= len(self.run.members):
            raise ValueError(
                f"top_k={top_k}: {folder} has {len(self.run.members)} members that are done"
            )
        self.members = self.run.members[:count]
        self._architecture = architecture_of(self._settings, self.run)
        self._params = self.run.load(self.members, self._architecture.init_params)
        self._programs: dict[Views, Any] = {}

    def __repr__(self) -> str:
        classes = ", ".join(self.run.class_names)
        return f"Ensemble({self.run.folder}, {len(self.members)} members; {classes})"

    def predict(
        self,
        array: Array,
        *,
        voxel_nm: Sequence[float],
        views: Views | None = None,
        progress: bool = True,
    ) -> Segmentation:
        """Segment a volume that lies in memory; by windows, views and blending of the run.

        Args:
          array: [z, y, x], any number type; its grey levels are standardised as a whole.
          voxel_nm: (z, y, x) in nm; other sizes than the run was trained on are warned of.
          views: of a window that are averaged: ``one``, ``flips`` or ``turns``; as the run if None.
          progress: show a bar on a terminal.

        Raises:
          ValueError: the array is not [z, y, x], is smaller than a window, is constant or not
            finite, or ``voxel_nm`` is not three positive lengths.
          MemoryError: the result would not fit; ``experiments.predict`` streams any volume.
        """
        array = np.asarray(array)
        if array.ndim != 3:
            raise ValueError(f"array has shape {array.shape}: expected [z, y, x]")
        if len(voxel_nm) != 3 or not all(0 < size < np.inf for size in voxel_nm):
            raise ValueError(f"voxel_nm={tuple(voxel_nm)}: expected three lengths z, y, x in nm")
        voxel = (float(voxel_nm[0]), float(voxel_nm[1]), float(voxel_nm[2]))
        warn_of_voxels("the array", voxel, self.run)
        self._check_memory(array.size)
        window = self._architecture.window_for(array.shape)
        z, y, x = self._architecture.output_window(window)
        chosen: Any = views or self._settings.views or "one"
        blend: Any = self._settings.blend or "centre"

        def shown(tiles: Iterator[Any], total: int) -> Iterator[Any]:
            quiet = not (progress and sys.stderr.isatty())
            return iter(tqdm(tiles, total=total, desc="segment", unit="window", disable=quiet))

        found = predict_volume(
            self._probabilities(chosen),
            standardise(array),
            window=window,
            output=(z, y, x),
            anisotropy=(voxel[0] / voxel[1], 1.0, voxel[2] / voxel[1]),
            blend=blend,
            keep_probabilities=True,
            progress=shown,
        )
        assert found.probabilities is not None
        return Segmentation(
            labels=found.labels,
            probabilities=found.probabilities,
            entropy=found.entropy,
            disagreement=found.disagreement,
            class_names=self.run.class_names,
            voxel_nm=voxel,
        )

    def _probabilities(self, views: Views) -> Any:
        if views not in self._programs:
            self._programs[views] = member_probabilities(
                self._architecture.networks["float32"],
                self._params,
                len(self.members),
                views=views,
            )
        return self._programs[views]

    def _check_memory(self, voxels: int) -> None:
        needed = voxels * (4 * len(self.run.class_names) + 16 + 2 * len(self.members))
        available = memory_limit(jax.devices("cpu")[:1])
        if needed > available:
            raise MemoryError(
                f"{voxels:,} voxels need about {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB "
                f"are available; python -m experiments.predict --run={self.run.folder} streams a "
                "volume of any size"
            )


def load(folder: str | Path, *, top_k: int | None = None) -> Ensemble:
    """Open a run of ``experiments.segment`` to segment further volumes.

    Args:
      folder: of the run, such as ``runs/first``.
      top_k: members that predict, the best by their evaluation score; all that are done if None.

    Raises:
      FileNotFoundError: there is no run in the folder.
      ValueError: no member is done, or fewer than ``top_k``.
    """
    return Ensemble(folder, top_k=top_k)


def architecture_of(settings: RecipeOptions, run: TrainedRun) -> Architecture:
    """The network of a run, in both precisions."""
    model = network_of(settings, len(run.class_names))
    window = three(settings.window or (), "--window")

    def init_params(key: jax.Array) -> Any:
        return draw_parameters(key, model, (1, *window, 1))

    return Architecture(
        init_params=init_params,
        networks={"float32": model.apply, "bfloat16": model.clone(dtype=jnp.bfloat16).apply},
        output_window=model.output_window,
        window=window,
        larger=three(settings.prediction_window or window, "--window"),
    )
