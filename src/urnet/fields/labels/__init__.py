"""Assign labels to cropped cells: from tables of positions and from nuclear fluorescence."""
