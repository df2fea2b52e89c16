"""From labelled volumes to the arrays that a segmentation sweep keeps on the device."""

from collections.abc import Sequence

import numpy as np

from densejax.data.augment import training_arrays
from densejax.data.datasets import LabelledVolume, standardise
from densejax.data.sampling import class_table
from densejax.data.windows import Sizes, check_windows, evaluation_corners, input_tile
from densejax.typing import UNLABELLED, Batch


def sweep_data(
    train: LabelledVolume,
    evaluation: LabelledVolume,
    weights: np.ndarray,
    *,
    window: Sizes,
    output: Sizes,
    at_most: int = 0,
    sampled: bool = False,
) -> Batch:
    """Arrays of a sweep: the training volume whole, the evaluation volume as windows.

    Each volume is standardised by its own mean and deviation, as published.

    Args:
      train: volume to draw from.
      evaluation: volume to evaluate on.
      weights: [z, y, x] float32, error weights of the training volume.
      window: (z, y, x) of the network's input.
      output: (z, y, x) of its output, centred in the input.
      at_most: evaluation windows, spread evenly over the volume; 0 is all of them.
      sampled: add what ``data.sampling`` draws windows by class from.

    Returns:
      What ``data.augment.draw_window`` reads of the training volume (``image``, ``labels``,
      ``weights`` [z, y, x] and the image's bounds), and ``evaluation_images`` [n, z, y, x],
      ``evaluation_labels`` [n, z', y', x'].

    Raises:
      ValueError: a window does not fit into its volume.
    """
    images, labels = evaluation_windows(evaluation, window=window, output=output)
    if at_most and at_most < len(images):
        chosen = np.linspace(0, len(images) - 1, at_most).round().astype(int)
        images, labels = images[chosen], labels[chosen]
    arrays = training_arrays(standardise(train.images), train.labels, weights=weights)
    table = class_table(train.labels, len(train.class_names)) if sampled else {}
    return {
        **{name: np.asarray(array) for name, array in arrays.items()},
        **table,
        "evaluation_images": images,
        "evaluation_labels": labels,
    }


def evaluation_windows(
    volume: LabelledVolume, *, window: Sizes, output: Sizes
) -> tuple[np.ndarray, np.ndarray]:
    """Windows that cover a volume; a voxel in two of them is labelled in the first only.

    Departure from the released evaluation, which counts shared voxels once for every window.

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
        inputs.append(input_tile(images, corner, output, window))
        labels.append(left[place].copy())
        left[place] = UNLABELLED
    return np.stack(inputs), np.stack(labels)


def class_counts(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Voxels of each class, and of ``not labelled`` where there are any."""
    counts = {name: int(np.sum(labels == index)) for index, name in enumerate(names)}
    unlabelled = int(np.sum(labels == UNLABELLED))
    return counts | ({"not labelled": unlabelled} if unlabelled else {})
