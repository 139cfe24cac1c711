"""Correct the illumination of a field and register its fluorescence image."""
