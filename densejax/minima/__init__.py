"""Studies of minima: searched by poisoning, read back from a run, measured, compared, reported."""
