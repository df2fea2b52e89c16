"""Comparing labellings of whole volumes: counts, scores, tables, the page."""
