"""A random forest on filters of the sections: the honest floor, and a first segmentation.

What ilastik does for its users in seconds (Berg et al. 2019, doi 10.1038/s41592-019-0582-9): voxels
are classified by Gaussian filters of their section at several scales. Every run of networks is
compared with it, on the same volumes.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from densejax import metrics
from densejax.data.datasets import LabelledVolume, standardise
from densejax.io import write_npz
from densejax.segmentation.sources import Parts

SIGMAS = (0.7, 1.5, 3.0, 6.0, 12.0)  # voxels
VOXELS_A_CLASS = 3000
TREES = 60
SMALLEST_LEAF = 3
MOST_VOXELS = 8_000_000  # that are labelled; of a larger volume, sections spread evenly
FILE = "forest.npz"


@dataclass(frozen=True)
class Forest:
    """What the forest made of the test volumes.

    Attributes:
      labels: [z, y, x] int32 of the first test volume; -1 in sections that were left out.
      confusion: [c, c] int64, counts over the labelled voxels of the sections that it labelled.
      sections: how many it labelled, of all.
      seconds: of wall time for training and labelling.
    """

    labels: np.ndarray
    confusion: np.ndarray
    sections: tuple[int, int]
    seconds: float

    @property
    def miou(self) -> float:
        """Mean IoU over classes."""
        return float(metrics.mean_iou(self.confusion))


def section_features(section: np.ndarray) -> np.ndarray:
    """Grey level, and at five scales the smoothed one, its Laplacian and its gradient.

    Args:
      section: [y, x] float32, standardised.

    Returns:
      [y, x, 16] float32.
    """
    found = [section]
    for sigma in SIGMAS:
        found += [
            scipy.ndimage.gaussian_filter(section, sigma),
            scipy.ndimage.gaussian_laplace(section, sigma),
            scipy.ndimage.gaussian_gradient_magnitude(section, sigma),
        ]
    return np.stack(found, axis=-1).astype(np.float32)


def compare(
    parts: Parts, folder: Path, *, say: Callable[[str], Any] = lambda line: print(line, flush=True)
) -> Forest:
    """Train the forest, label the test volume, and keep both; or read what an earlier start kept.

    Args:
      parts: trains on the training volume, labels the test volume.
      folder: where ``forest.npz`` is kept.
      say: told how it went.

    Raises:
      ValueError: ``forest.npz`` is of a volume of another shape.
    """
    path = folder / FILE
    forest = _read(path, parts.test) if path.exists() else _train(parts)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, forest)
    some = "" if forest.sections[0] == forest.sections[1] else " of %d of %d sections"
    say(
        f"baseline     random forest on filters: test MIoU {forest.miou:.3f}"
        f"{some % forest.sections if some else ''}, {forest.seconds:.0f} s"
    )
    return forest


def _train(parts: Parts) -> Forest:
    # Imported here: --help answers without scikit-learn.
    from sklearn.ensemble import ExtraTreesClassifier

    start = time.perf_counter()
    rng = np.random.default_rng(0)
    trained, classes = parts.volumes("train"), len(parts.class_names)
    flat = np.concatenate([volume.labels.ravel() for volume in trained])
    chosen: list[np.ndarray] = []
    for index in range(classes):
        places = np.flatnonzero(flat == index)
        chosen.append(rng.choice(places, min(VOXELS_A_CLASS, len(places)), replace=False))
    picked = np.sort(np.concatenate(chosen))
    rows, truth, first = [], [], 0
    for volume in trained:
        size, area = volume.labels.size, volume.labels.shape[1] * volume.labels.shape[2]
        mine = picked[(picked >= first) & (picked < first + size)] - first
        first += size
        images = standardise(volume.images)
        for z, features in _each_section(images, sorted(set((mine // area).tolist()))):
            inside = mine[mine // area == z] % area
            rows.append(features.reshape(area, -1)[inside])
            truth.append(volume.labels[z].ravel()[inside])
    forest = ExtraTreesClassifier(
        TREES, min_samples_leaf=SMALLEST_LEAF, random_state=0, n_jobs=-1
    ).fit(np.concatenate(rows), np.concatenate(truth))
    labelled, confusion, counts = [], np.zeros((classes, classes), np.int64), [0, 0]
    tested = parts.volumes("test")
    for test in tested:
        depth = len(test.labels)
        area = test.labels.shape[1] * test.labels.shape[2]
        most = max(1, MOST_VOXELS // (area * len(tested)))
        sections = np.unique(np.linspace(0, depth - 1, min(depth, most)).round().astype(int))
        found = np.full(test.labels.shape, -1, np.int32)
        for z, features in _each_section(standardise(test.images), sections.tolist()):
            found[z] = forest.predict(features.reshape(area, -1)).reshape(found[z].shape)
        truth_seen = np.where(found >= 0, test.labels, -1)
        confusion += np.asarray(
            metrics.confusion_counts(truth_seen, np.maximum(found, 0), classes=classes), np.int64
        )
        labelled.append(found)
        counts = [counts[0] + len(sections), counts[1] + depth]
    seconds = time.perf_counter() - start
    return Forest(labelled[0], confusion, (counts[0], counts[1]), seconds)


def _each_section(images: np.ndarray, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Features of some sections, a few at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield from zip(wanted, pool.map(lambda z: section_features(images[z]), wanted), strict=True)


def _write(path: Path, forest: Forest) -> None:
    content = {
        "labels": forest.labels.astype(np.int16),
        "confusion": forest.confusion,
        "about": json.dumps({"sections": forest.sections, "seconds": forest.seconds}),
    }
    write_npz(path, content, compressed=True)


def _read(path: Path, test: LabelledVolume) -> Forest:
    with np.load(path) as kept:
        labels, confusion = kept["labels"].astype(np.int32), kept["confusion"]
        about = json.loads(str(kept["about"]))
    if labels.shape != test.labels.shape:
        raise ValueError(
            f"{path}: labels of {labels.shape}; expected the test volume's {test.labels.shape}. "
            "It is of other data: name another --workdir"
        )
    return Forest(labels, confusion, (about["sections"][0], about["sections"][1]), about["seconds"])
