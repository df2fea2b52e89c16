"""Predictions of ensembles by windows, in memory and as streams; arrays in, arrays out.

Nothing here knows a run's folder or a kind of task.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
