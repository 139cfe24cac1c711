"""Find cells in a field by rules."""
