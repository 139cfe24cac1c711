"""Donors as the unit of variation: how many are needed before their spread is estimated."""

MIN_DONORS = 5
"""Minimum number of donors from which the spread between donors is estimated."""
