"""Volumes, windows, augmentation, error weights and synthetic worlds with known truth."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
