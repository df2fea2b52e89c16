"""Volumes, windows, augmentation, error weights and synthetic worlds with known truth."""
