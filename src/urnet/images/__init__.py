"""Pixels: read, simulate. Knows nothing of labels or tables."""
