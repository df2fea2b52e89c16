"""densejax: experiments on populations of networks in JAX."""

__version__ = "0.1.0"
