"""Image enhancers: one file for each architecture, and their registry."""
