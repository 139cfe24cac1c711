"""Simulate brightfield images: phantom cells, destaining, and the optics that both use."""
