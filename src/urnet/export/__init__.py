"""Models that leave Python: one graph for every format, each held to parity before it is kept."""
