"""densejax: experiments on populations of networks in JAX.

``import densejax as dj`` is enough in a notebook: ``dj.data``, ``dj.models``, ``dj.segmentation``,
``dj.inference``, ``dj.landscape``, ``dj.active`` and ``dj.plots`` list what one needs, ``dj.load``
opens a finished run. Each is imported on use; nothing here starts a device.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
