"""Pictures in one folder a class (the layout of ImageNet), decoded as they are needed."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


@dataclass(frozen=True)
class ImageFolder:
    """n pictures on disk: only their names and labels are in memory.

    A picture is read as red, green and blue, its shorter side resampled to ``resize`` (bilinear,
    with PIL's smoothing) and the centre cut to ``size``: what is customary for evaluation, after
    which augmentation can crop on the device.

    Attributes:
        paths: n files, ordered by class, then by name.
        labels: int32 [n], the place of the class's folder among the folders, ordered by name.
        class_names: names of the folders.
        size: of the pictures that come out, y and x, pixels.
        resize: shorter side before the cut, pixels, at least ``size``.
        name: what messages call the set.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    size: int
    resize: int
    name: str

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(
                f"{self.name}: size {self.size}, resize {self.resize}; expected 1 <= size <= resize"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Decode one picture, uint8 [size, size, 3].

        Raises:
            FileNotFoundError: the file is gone.
            ValueError: the file is cut short or is no picture; the message names it.
        """
        path = self.paths[index]
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except FileNotFoundError:
            raise
        except Exception as error:  # A broken picture may raise anything.
            raise ValueError(f"{path}: is cut short or is no picture ({error})") from error
        x, y = image.size
        # Whole numbers, truncated, as torchvision's Resize.
        if x <= y:
            x, y = self.resize, int(self.resize * y / x)
        else:
            x, y = int(self.resize * x / y), self.resize
        left, top = round((x - self.size) / 2), round((y - self.size) / 2)
        resized = image.resize((x, y), Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))

    def batches(
        self, batch: int, *, indices: Sequence[int] | np.ndarray | None = None, workers: int = 8
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read pictures in order, decoded in threads a batch or two ahead.

        Args:
            batch: pictures a batch, 1 or more; the last may be smaller.
            indices: which, in which order; all by default. An epoch's order comes from here.
            workers: threads.

        Yields:
            images uint8 [b, size, size, 3] and labels int32 [b].

        Raises:
            IndexError: an index is outside 0 to n - 1.
            ValueError: ``batch`` or ``workers`` is below 1, or a file is broken, as ``read``.
        """
        if batch < 1 or workers < 1:
            raise ValueError(f"{self.name}: batch {batch}, {workers} workers; expected 1 or more")
        order = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        outside = order[(order < 0) | (order >= len(self))]
        if outside.size:
            raise IndexError(f"{self.name}: index {outside[0]}; expected 0 to {len(self) - 1}")
        return self._stream(batch, order, workers)

    def _stream(
        self, batch: int, order: np.ndarray, workers: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pool = ThreadPoolExecutor(workers)
        waiting: deque[tuple[np.ndarray, list[Future[np.ndarray]]]] = deque()
        try:
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                waiting.append((rows, [pool.submit(self.read, int(row)) for row in rows]))
                if len(waiting) > 2:
                    yield self._take(*waiting.popleft())
            while waiting:
                yield self._take(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _take(
        self, rows: np.ndarray, reads: list[Future[np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([read.result() for read in reads]), self.labels[rows]


def open_image_folder(
    folder: str | Path, *, size: int = 224, resize: int | None = None, name: str | None = None
) -> ImageFolder:
    """Find the pictures of ``folder/<class>/...``, ordered by name.

    Args:
        folder: one folder a class in it; other files are left out.
        size: of the pictures that come out, y and x, pixels.
        resize: shorter side before the central cut; 8/7 of ``size`` where None (256 for 224).
        name: what messages call the set; by default the folder.

    Raises:
        FileNotFoundError: no such folder, no class in it, or a class without a picture.
        ValueError: ``size`` or ``resize`` does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected one folder a class in it")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise FileNotFoundError(f"{folder}: no folder in it; expected one a class")
    paths, labels = [], []
    for label, class_name in enumerate(classes):
        found = sorted(p for p in (folder / class_name).rglob("*") if p.suffix.lower() in ENDINGS)
        if not found:
            raise FileNotFoundError(
                f"{folder / class_name}: no picture in it; expected {', '.join(ENDINGS)}"
            )
        paths += found
        labels += [label] * len(found)
    return ImageFolder(
        tuple(paths),
        np.array(labels, np.int32),
        tuple(classes),
        size,
        size * 8 // 7 if resize is None else resize,
        str(folder) if name is None else name,
    )


def open_imagenet(
    folder: str | Path, *, size: int = 224, resize: int | None = None
) -> tuple[ImageFolder, ImageFolder]:
    """Training and test set of ImageNet: ``folder/train/<class>/`` and ``folder/val/<class>/``.

    The published validation set stands in for the test set, as is usual; its pictures must have
    been sorted into one folder a class. ImageNet must be asked for at https://image-net.org.

    Args:
        folder: that holds ``train`` and ``val``.
        size: as ``open_image_folder``.
        resize: as ``open_image_folder``.

    Raises:
        FileNotFoundError: as ``open_image_folder``.
        ValueError: the two have not the same classes.
    """
    train = open_image_folder(Path(folder) / "train", size=size, resize=resize, name="train")
    test = open_image_folder(Path(folder) / "val", size=size, resize=resize, name="val")
    if train.class_names != test.class_names:
        odd = sorted(set(train.class_names) ^ set(test.class_names))
        raise ValueError(f"{folder}: class {odd[0]} is not in both train and val")
    return train, test
