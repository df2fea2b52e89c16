"""Every picture, from plain arrays; nothing here computes a result."""
