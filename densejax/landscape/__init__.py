"""Loss landscapes: directions, surfaces, basins, paths and curvature of any loss of a pytree."""
