"""Intervals, tests and limits: which one applies, and how it is called in words."""
