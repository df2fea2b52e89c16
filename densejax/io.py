"""Texts that people write and files that programs leave; this module imports no jax."""


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return seeds from text: ``0:8`` (0 to 7), ``0,3,5``, or both, ``0:4,10``; in the order given.

    Raises:
      ValueError: an entry is neither a number nor a range, a range is empty, a seed is negative or
        occurs twice, or there is none.
    """
    seeds: list[int] = []
    for entry in text.split(","):
        ends = entry.strip().split(":")
        if len(ends) > 2 or not all(end.strip().isdecimal() for end in ends):
            raise ValueError(
                f"seeds {text!r}: {entry.strip()!r} is neither a number from 0 up, such as 3, "
                "nor a range, such as 0:8"
            )
        first, stop = int(ends[0]), int(ends[1]) if len(ends) == 2 else int(ends[0]) + 1
        if stop <= first:
            raise ValueError(f"seeds {text!r}: the range {entry.strip()!r} is empty")
        seeds.extend(range(first, stop))
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seeds {text!r}: {twice} occur twice")
    return tuple(seeds)
