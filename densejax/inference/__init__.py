"""Rank members, average their predictions, compare populations as distributions."""
