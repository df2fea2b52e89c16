"""Names for the kinds of values that travel through densejax, and the letters of their axes.

Letters in docstrings: k instances, b batch, z y x space, c classes or channels, n pool,
d features, m stochastic passes, p points of a surface. Arrays of space are Z, Y, X with channels
last: ``[b, z, y, x, c]``. Voxel sizes are in nanometres, ``(z, y, x)``. Labels are int32 and
``UNLABELLED`` marks a voxel that never counts in a loss or a metric.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
Key: TypeAlias = jax.Array
Params: TypeAlias = Any
Tree: TypeAlias = Any
Batch: TypeAlias = Mapping[str, Array]
Measures: TypeAlias = dict[str, Any]

UNLABELLED = -1
