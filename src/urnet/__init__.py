"""urnet: enhance and classify stain-free white blood cells with one jointly trained network."""

__version__ = "0.1.0"
