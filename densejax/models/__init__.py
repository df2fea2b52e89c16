"""Linen networks, one architecture a file; ``apply`` returns ``(logits, out)``."""
