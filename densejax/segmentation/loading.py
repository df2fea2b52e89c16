"""A run's best members as one object: from an array to labels, probabilities and uncertainty."""

import contextlib
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from densejax.data.formats import LazyArray
from densejax.data.ome_zarr import open_level
from densejax.data.volumes import Volume
from densejax.data.windows import Sizes, check_windows
from densejax.inference.members import Network, Precision, member_probabilities
from densejax.inference.sliding_window import predict_volume
from densejax.inference.tiles import Views, Windowing, pooling_factor, whole
from densejax.inference.whole_volume import StreamJob, stream_volume
from densejax.models.layers import draw_parameters
from densejax.population import memory_limit
from densejax.segmentation.networks import network_of
from densejax.segmentation.recipes import RecipeOptions
from densejax.segmentation.runs import TrainedRun, open_run, read_config, warn_of_voxels
from densejax.segmentation.sources import three
from densejax.typing import Array, Params


@dataclass(frozen=True)
class Architecture:
    """A run's network.

    Attributes:
      init_params: fresh parameters from a key.
      networks: ``(params, [b, z, y, x, 1]) -> (logits, out)`` by precision.
      output_window: (z, y, x) of its input -> (z, y, x) of its output.
      window: (z, y, x) of the training windows.
      larger: (z, y, x) of the windows of the run's own predictions, where they are others.
    """

    init_params: Callable[[Any], Params]
    networks: Mapping[Precision, Network]
    output_window: Callable[[Sizes], Sequence[int]]
    window: Sizes
    larger: Sizes | None = None

    def window_for(self, shape: Sequence[int]) -> Sizes:
        """The run's own windows of prediction where a volume holds one, else those of training."""
        if self.larger and all(w <= n for w, n in zip(self.larger, shape, strict=True)):
            return self.larger
        return self.window

    def windowing(self, window: Sizes, *, blend: Any, views: Any) -> Windowing:
        """How a volume is seen in such windows."""
        z, y, x = self.output_window(window)
        return Windowing(window, (z, y, x), blend=blend, views=views)


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


@dataclass(frozen=True)
class Segmentation:
    """What an ensemble says of a volume: NumPy arrays, or, streamed, what reads as such in slices.

    Attributes:
      labels: [z, y, x] int32, the likeliest class by the mean probabilities of all members.
      probabilities: [z, y, x, c] float32, that mean; None where it was streamed.
      entropy: [z, y, x] float32, of that mean, divided by log(c): 0 to 1; streamed by 1 / 255.
      disagreement: [z, y, x] float32, share of members whose own label is another: 0 to 1; streamed
        by 1 / 255.
      class_names: names of the c classes.
      voxel_nm: (z, y, x).
    """

    labels: np.ndarray | LazyArray
    probabilities: np.ndarray | None
    entropy: np.ndarray | LazyArray
    disagreement: np.ndarray | LazyArray
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
        count = "1 member" if len(self.members) == 1 else f"{len(self.members)} members"
        return f"Ensemble({self.run.folder}, {count}; {classes})"

    def predict(
        self,
        array: Array | LazyArray,
        *,
        voxel_nm: Sequence[float],
        views: Views | None = None,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> Segmentation:
        """Segment a volume by windows, views and blending of the run.

        Args:
          array: [z, y, x], any number type; its grey levels are standardised as a whole. Where it
            is streamed, anything that slices to NumPy: a memory map, an array of Zarr or HDF5.
          voxel_nm: (z, y, x) in nm; other sizes than the run was trained on are warned of.
          views: of a window that are averaged: ``one``, ``flips`` or ``turns``; as the run if None.
          folder: stream the result there, block by block, as ``experiments.predict`` does: memory
            is that of a few blocks, and the same call goes on after a kill. None keeps all in
            memory.
          progress: show how far it is, on a terminal or, where it is streamed, in lines.

        Raises:
          ValueError: the array is not [z, y, x], is smaller than a window, is constant or not
            finite, ``voxel_nm`` is not three positive lengths, or the folder is of another
            prediction.
          MemoryError: the result would not fit, and there is no folder.
        """
        if not hasattr(array, "shape"):
            array = np.asarray(array)
        if len(array.shape) != 3:
            raise ValueError(f"array has shape {tuple(array.shape)}: expected [z, y, x]")
        if len(voxel_nm) != 3 or not all(0 < size < np.inf for size in voxel_nm):
            raise ValueError(f"voxel_nm={tuple(voxel_nm)}: expected three lengths z, y, x in nm")
        voxel = (float(voxel_nm[0]), float(voxel_nm[1]), float(voxel_nm[2]))
        warn_of_voxels("the array", voxel, self.run)
        chosen: Any = views or self._settings.views or "one"
        if folder is not None:
            hidden = contextlib.redirect_stdout(io.StringIO())
            with contextlib.nullcontext() if progress else hidden:
                return self._streamed(array, voxel, chosen, Path(folder))
        self._check_memory(int(np.prod(array.shape, dtype=np.int64)))
        quiet = None if progress else True  # None is quiet where there is no terminal
        found = predict_volume(
            self._probabilities(chosen),
            np.asarray(array),
            self._windowing(array.shape, chosen).at(voxel),
            keep_probabilities=True,
            progress=lambda tiles, total: iter(
                tqdm(tiles, total=total, desc="segment", unit="window", disable=quiet)
            ),
        )
        maps = (found.labels, found.probabilities, found.entropy, found.disagreement)
        return Segmentation(*maps, self.run.class_names, voxel)

    def _windowing(self, shape: Sequence[int], views: Views) -> Windowing:
        window = self._architecture.window_for(shape)
        blend = self._settings.blend or "centre"
        return self._architecture.windowing(window, blend=blend, views=views)

    def _streamed(
        self, array: Any, voxel: tuple[float, float, float], views: Views, folder: Path
    ) -> Segmentation:
        z, y, x = (int(size) for size in array.shape)
        lazy = LazyArray((z, y, x), array.dtype, lambda box: np.asarray(array[box]))
        windowing = self._windowing(lazy.shape, views)
        check_windows(lazy.shape, windowing.window, windowing.output)
        job = StreamJob(
            folder=folder,
            volume=Volume(lazy, voxel, _name_of(lazy)),
            part=whole(lazy.shape),
            networks=self._architecture.networks,
            params=self._params,
            members=dict(zip(self.members, self.run.scores, strict=False)),
            source=str(self.run.folder),
            class_names=self.run.class_names,
            windowing=windowing,
            factor=pooling_factor(self._architecture.output_window, windowing.window),
            devices=tuple(jax.local_devices()),
            about={"dataset": "", "organelles": self.run.organelles, "normalise": "own"},
        )
        stream_volume(job)

        def read(name: str, dtype: Any, scale: float) -> LazyArray:
            store = open_level(folder / f"{name}.zarr")

            def shown(box: Any) -> np.ndarray:
                return store[box].read().result().astype(dtype) * dtype(scale)

            return LazyArray(lazy.shape, dtype, shown)

        labels = read("labels", np.int32, 1)
        entropy, other = (read(n, np.float32, 1 / 255) for n in ("entropy", "disagreement"))
        return Segmentation(labels, None, entropy, other, self.run.class_names, voxel)

    def _probabilities(self, views: Views) -> Any:
        if views not in self._programs:
            network = self._architecture.networks["float32"]
            self._programs[views] = member_probabilities(network, self._params, views=views)
        return self._programs[views]

    def _check_memory(self, voxels: int) -> None:
        needed = voxels * (4 * len(self.run.class_names) + 16 + 2 * len(self.members))
        available = memory_limit(jax.devices("cpu")[:1])
        if needed > available:
            raise MemoryError(
                f"{voxels:,} voxels need about {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB "
                "are available; give folder= to stream the result there, whatever its size"
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


def _name_of(array: LazyArray) -> str:
    """An array by a few of its rows, so that a folder is not continued with another."""
    z, y, _ = array.shape
    rows = [array[k * (z - 1) // 4, (4 - k) * (y - 1) // 4, :] for k in range(5)]
    return f"array {zlib.crc32(np.stack(rows).tobytes()):08x}"
