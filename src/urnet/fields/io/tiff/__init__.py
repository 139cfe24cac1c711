"""Read fields from TIFF and OME-TIFF files."""
