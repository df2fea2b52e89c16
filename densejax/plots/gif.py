"""GIF files, frame after frame: one palette for all, and of each frame only what moved."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import GifImagePlugin, Image, ImageChops

COLOURS = 255  # of a GIF, beside a pure white
BINS = 32  # a channel, of the histogram that the palette is taken from
SAMPLES = 200_000


def write(frames: Iterator[np.ndarray], path: Path, seconds: float, hold: float) -> None:
    """Two passes, since the palette must know all frames: they wait on disk, packed."""
    with tempfile.TemporaryDirectory() as folder:
        counts, sums = np.zeros(BINS**3), np.zeros((BINS**3, 3))
        kept = 0
        for kept, frame in enumerate(frames, 1):
            _count(frame, counts, sums)
            Image.fromarray(frame).save(f"{folder}/{kept - 1}.png", compress_level=1)
        palette = _palette(counts, sums)
        still = [f"{folder}/{index}.png" for index in range(kept)]
        with open(path, "wb") as file:
            for block in _gif_blocks(still, palette, seconds, hold):
                file.write(block)


def _count(frame: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> None:
    """Add a frame to a histogram of colours, in place."""
    pixels = frame.reshape(-1, 3)
    coarse = pixels.astype(np.int64) * BINS // 256
    places = (coarse[:, 0] * BINS + coarse[:, 1]) * BINS + coarse[:, 2]
    counts += np.bincount(places, minlength=len(counts))
    for channel in range(3):
        sums[:, channel] += np.bincount(places, pixels[:, channel], minlength=len(counts))


def _palette(counts: np.ndarray, sums: np.ndarray) -> Image.Image:
    """A palette by median cut, in which a thin line counts beside a wide ground."""
    met = counts > 0
    colours = (sums[met] / counts[met, None]).round().astype(np.uint8)
    weights = np.sqrt(counts[met])
    repeats = np.ceil(weights * SAMPLES / weights.sum()).astype(int)
    samples = Image.fromarray(np.repeat(colours, repeats, axis=0)[None])
    cut = samples.quantize(COLOURS, method=Image.Quantize.MEDIANCUT).getpalette() or []
    found = Image.new("P", (1, 1))
    found.putpalette([255, 255, 255, *cut[: 3 * COLOURS]])
    return found


def _gif_blocks(
    frames: Sequence[str], palette: Image.Image, seconds: float, hold: float
) -> Iterator[bytes]:
    """The parts of a GIF in their order; of every frame but the first, the box that changed."""
    before: Image.Image | None = None
    # Times are rounded where they end, so that many frames do not drift.
    ends = np.round(100 * seconds * np.arange(len(frames) + 1)).astype(int)
    ends[-1] += round(100 * hold)
    for index, name in enumerate(frames):
        with Image.open(name) as file:
            frame = file.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
        box = (0, 0, *frame.size)
        if before is None:
            header, _ = GifImagePlugin.getheader(frame.copy(), info={"loop": 0})
            yield from header
        else:
            changed = ImageChops.difference(_indices(before), _indices(frame)).getbbox()
            box = changed or (0, 0, 1, 1)
        before = frame
        duration = 10 * int(ends[index + 1] - ends[index])
        yield from GifImagePlugin.getdata(frame.crop(box), box[:2], duration=duration, disposal=1)
    yield b";"


def _indices(image: Image.Image) -> Image.Image:
    """The entries of the palette as greys."""
    return Image.frombytes("L", image.size, image.tobytes())
