"""Boxes that cut an array into blocks of about one size, along the chunks in which it is stored."""

import math
from collections.abc import Sequence

Slices = tuple[slice, ...]


def box_text(box: Sequence[slice | tuple[int, int]]) -> str:
    """A box as flags and messages write it, such as ``0:16,0:128,0:128``."""
    ends = [(part.start, part.stop) if isinstance(part, slice) else part for part in box]
    return ",".join(f"{low}:{high}" for low, high in ends)


def cut_blocks(shape: Sequence[int], step: Sequence[int], *, voxels: int) -> list[Slices]:
    """Cut an array into blocks that are near to cubes, so that few voxels lie at their faces.

    Args:
        shape: of the array, any number of axes.
        step: whole multiples of it are the edges of a block, such as a chunk's.
        voxels: of a block, at most, unless a single step has more.

    Returns:
        Boxes that cover every voxel once, the first axis slowest.
    """
    edge = [min(int(s), int(n)) for s, n in zip(step, shape, strict=True)]
    while True:
        growing = [i for i, n in enumerate(shape) if edge[i] < n]
        grown = sorted(growing, key=lambda i: (edge[i], -i))
        fitting = [
            i for i in grown if math.prod(edge) // edge[i] * min(2 * edge[i], shape[i]) <= voxels
        ]
        if not fitting:
            break
        # Doubled, so that the edge stays a multiple of the step until it is the whole axis.
        edge[fitting[0]] *= 2
    cuts = [
        [slice(low, min(low + size, end)) for low in range(0, end, size)]
        for size, end in zip(edge, shape, strict=True)
    ]
    boxes: list[Slices] = [()]
    for along in cuts:
        boxes = [(*box, part) for box in boxes for part in along]
    return boxes
