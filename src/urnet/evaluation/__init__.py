"""Metrics with intervals, Grad-CAM, figures and the report."""
