"""Images: read pixels from files, scale them, measure them, simulate them. No labels and no tables."""
