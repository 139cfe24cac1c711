"""Crop single cells from fields of view."""
