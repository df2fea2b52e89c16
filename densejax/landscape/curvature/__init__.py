"""Curvature of a loss at a point: its Hessian's products, spectrum and trace, and its sharpness."""

from densejax.landscape.curvature.hessian import (
    SpectralDensity,
    TraceEstimate,
    convexity,
    extreme_eigenvalues,
    hessian_plane,
    hessian_vector,
    spectral_density,
    top_eigenpairs,
    trace,
)
from densejax.landscape.curvature.sharpness import ascent_sharpness, box_sharpness

__all__ = [
    "SpectralDensity",
    "TraceEstimate",
    "ascent_sharpness",
    "box_sharpness",
    "convexity",
    "extreme_eigenvalues",
    "hessian_plane",
    "hessian_vector",
    "spectral_density",
    "top_eigenpairs",
    "trace",
]
