"""The networks: one file an architecture, one registry of enhancers, timm for the classifiers."""
