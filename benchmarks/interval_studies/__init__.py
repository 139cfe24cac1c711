"""Simulations of intervals, one module for each part of `benchmarks/intervals.py`."""
