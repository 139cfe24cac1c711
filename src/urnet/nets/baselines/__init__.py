"""Methods of other works, for comparison with UR-Net."""
