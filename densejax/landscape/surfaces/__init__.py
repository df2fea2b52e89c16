"""Surfaces: the loss at points of a line or a plane, and on grids that are kept and resumed."""

from densejax.landscape.surfaces.grid import (
    Surface,
    evaluate,
    line_profile,
    read_surface,
    seeds_surface,
    surface,
)

__all__ = ["Surface", "evaluate", "line_profile", "read_surface", "seeds_surface", "surface"]
