"""Whether a folder can be one that all hosts see."""

import os
from pathlib import Path

# Kept in the memory of one machine.
_OF_ONE_HOST = {"tmpfs", "ramfs", "devtmpfs"}
# Of a disk of this machine, unless it is this machine that exports it.
_OF_A_DISK = {"ext2", "ext3", "ext4", "xfs", "btrfs", "overlay", "zfs"}


def check(folder: Path, *, table: Path = Path("/proc/mounts")) -> list[str]:
    """Look at the file system of a folder that is to be shared.

    Args:
      folder: it need not exist yet.
      table: of mounted file systems.

    Returns:
      Warnings: a local disk may be seen by the other hosts, or not.

    Raises:
      ValueError: no other host can see the folder.
    """
    kind, place = _file_system(folder, table)
    if kind in _OF_ONE_HOST:
        raise ValueError(
            f"{folder} lies on {place}, which is {kind}: in the memory of this machine, unseen by "
            "the nodes. Name a --workdir on a file system that all hosts share."
        )
    if kind in _OF_A_DISK:
        return [
            f"{folder} lies on {place}, a disk of this machine ({kind}); if the nodes do not see "
            "it, their jobs end without a word, and python -m launch.status says so"
        ]
    return []


def _file_system(folder: Path, table: Path) -> tuple[str, str]:
    """Kind and place of the file system that a path is on; empty where it cannot be told."""
    real = os.path.realpath(folder)
    best = ("", "")
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return best
    for line in lines:
        _, place, kind = line.split()[:3]
        place = place.replace("\\040", " ")
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best[1]):
            best = (kind, place)
    return best
