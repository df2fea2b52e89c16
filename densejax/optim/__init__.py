"""Optimisers that are compared: one protocol, those that optax lacks, the thesis' settings."""
