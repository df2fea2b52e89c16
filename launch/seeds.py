"""Lists of seeds as text, and their division into blocks."""

from collections.abc import Iterable, Sequence


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from text as experiments take it: ``0:8`` (0 to 7), ``0,3,5``, or ``0:4,10``.

    Raises:
      ValueError: an entry is neither number nor range, a range is empty, or a seed comes twice.
    """
    seeds: list[int] = []
    for entry in text.split(","):
        ends = [end.strip() for end in entry.split(":")]
        if len(ends) > 2 or not all(end.isdecimal() for end in ends):
            raise ValueError(
                f"seeds {text!r}: {entry.strip()!r} is neither a number from 0 up, such as 3, "
                "nor a range, such as 0:8"
            )
        first, stop = int(ends[0]), int(ends[-1]) if len(ends) == 2 else int(ends[0]) + 1
        if stop <= first:
            raise ValueError(f"seeds {text!r}: the range {entry.strip()!r} is empty")
        seeds.extend(range(first, stop))
    if len(set(seeds)) != len(seeds):
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        raise ValueError(f"seeds {text!r}: {twice} occur twice")
    return tuple(seeds)


def write_seeds(seeds: Iterable[int]) -> str:
    """The shortest text that ``parse_seeds`` reads as these seeds, in ascending order."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and ranges[-1][1] == seed:
            ranges[-1][1] += 1
        else:
            ranges.append([seed, seed + 1])
    return ",".join(f"{a}" if b == a + 1 else f"{a}:{b}" for a, b in ranges)


def in_blocks(seeds: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Blocks of ``size`` seeds in their order; the last may be smaller.

    Raises:
      ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"block must be at least 1 seed, found {size}")
    return [tuple(seeds[start : start + size]) for start in range(0, len(seeds), size)]
