"""Open fields of view: one reader for each file format, one interface for all."""
