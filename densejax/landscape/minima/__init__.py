"""Minima of the studies: read back from a run, measured, compared, reported."""
