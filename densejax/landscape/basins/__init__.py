"""Basins: along random rays the distance to a loss, and the volume that the distances tell."""

from densejax.landscape.basins.radius import (
    Radii,
    direction,
    joined,
    radii,
    radii_along,
    radii_of_many,
)
from densejax.landscape.basins.volume import LogVolume, log_volume

__all__ = [
    "LogVolume",
    "Radii",
    "direction",
    "joined",
    "log_volume",
    "radii",
    "radii_along",
    "radii_of_many",
]
