"""Files: atomic output, locks, search of folders, names on disk, CSV and JSON."""
