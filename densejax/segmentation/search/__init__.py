"""Searching for an architecture: what is drawn, and what a search comes to."""
