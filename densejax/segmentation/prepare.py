"""From labelled volumes to the arrays that a segmentation sweep keeps on the device."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from densejax.data.augment import training_arrays
from densejax.data.datasets import LabelledVolume, standardise
from densejax.data.sampling import class_table
from densejax.data.windows import Sizes, check_windows, evaluation_corners, input_tile
from densejax.typing import UNLABELLED, Batch


def sweep_data(
    train: LabelledVolume | Sequence[LabelledVolume],
    evaluation: LabelledVolume | Sequence[LabelledVolume],
    weights: np.ndarray | Sequence[np.ndarray],
    *,
    window: Sizes,
    output: Sizes,
    at_most: int = 0,
    sampled: bool = False,
    sparse: bool = False,
) -> Batch:
    """Arrays of a sweep: the training volumes whole, the evaluation volumes as windows.

    Each volume is standardised by its own mean and deviation, as published.

    Args:
      train: volume to draw from, or several of any shapes.
      evaluation: volume to evaluate on, or several.
      weights: [z, y, x] float32, error weights of each training volume.
      window: (z, y, x) of the network's input.
      output: (z, y, x) of its output, centred in the input.
      at_most: evaluation windows, spread evenly over the volumes; 0 is all of them.
      sampled: add what ``data.sampling`` draws windows by class from.
      sparse: little is labelled: draw windows around what is, and evaluate on none without labels.

    Returns:
      What ``data.augment.draw_window`` reads of the training volume (``image``, ``labels``,
      ``weights`` [z, y, x] and the image's bounds; of several, those of each in ``volumes``), and
      ``evaluation_images`` [n, z, y, x], ``evaluation_labels`` [n, z', y', x'].

    Raises:
      ValueError: a window does not fit into its volume.
    """
    trained, judged = _several(train), _several(evaluation)
    heavy: list[Any] = [weights] if isinstance(train, LabelledVolume) else list(weights)
    for volume in (*trained, *judged):
        try:
            check_windows(volume.images.shape, window, output)
        except ValueError as error:
            raise ValueError(
                f"{volume.name}: {error}. --window gives the window, --sections the parts of a "
                "volume"
            ) from error
    pairs = [
        evaluation_windows(volume, window=window, output=output, sparse=sparse) for volume in judged
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    if at_most and at_most < len(images):
        chosen = np.linspace(0, len(images) - 1, at_most).round().astype(int)
        images, labels = images[chosen], labels[chosen]
    found = [
        {
            name: np.asarray(array)
            for name, array in training_arrays(
                standardise(volume.images), volume.labels, weights=own
            ).items()
        }
        for volume, own in zip(trained, heavy, strict=True)
    ]
    every = [volume.labels for volume in trained]
    table: dict[str, np.ndarray] = {}
    if sampled:
        classes = len(trained[0].class_names)
        table = class_table(every if len(every) > 1 else every[0], classes, sparse=sparse)
    data: dict[str, Any] = found[0] if len(found) == 1 else {"volumes": tuple(found)}
    return {**data, **table, "evaluation_images": images, "evaluation_labels": labels}


def evaluation_windows(
    volume: LabelledVolume, *, window: Sizes, output: Sizes, sparse: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Windows that cover a volume; a voxel in two of them is labelled in the first only.

    Departure from the released evaluation, which counts shared voxels once for every window. With
    ``sparse`` a window that has no label for its own is left out.

    Returns:
      Input windows [n, z, y, x] float32 and labels [n, z', y', x'] int32.

    Raises:
      ValueError: a window does not fit into the volume, or reaches too far beyond it.
    """
    images = standardise(volume.images)
    check_windows(images.shape, window, output)
    left = volume.labels.astype(np.int32).copy()
    inputs, labels = [], []
    for corner in evaluation_corners(images.shape, output, (0, 0, 0)):
        place = tuple(slice(int(c), int(c) + n) for c, n in zip(corner, output, strict=True))
        if sparse and not (left[place] >= 0).any():
            continue
        inputs.append(input_tile(images, corner, output, window))
        labels.append(left[place].copy())
        left[place] = UNLABELLED
    return np.stack(inputs), np.stack(labels)


def _several(volumes: LabelledVolume | Sequence[LabelledVolume]) -> Sequence[LabelledVolume]:
    return [volumes] if isinstance(volumes, LabelledVolume) else volumes


def class_counts(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Voxels of each class, and of ``not labelled`` where there are any."""
    counts = {name: int(np.sum(labels == index)) for index, name in enumerate(names)}
    unlabelled = int(np.sum(labels == UNLABELLED))
    return counts | ({"not labelled": unlabelled} if unlabelled else {})
