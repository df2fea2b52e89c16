"""Measurements against peers: ratios in one interleaved run, never timed tests."""
