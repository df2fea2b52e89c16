"""Active learning: which samples, windows or regions of interest to label next."""
