"""Loss landscapes: directions, surfaces, basins, paths and curvature of any loss of a pytree."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
