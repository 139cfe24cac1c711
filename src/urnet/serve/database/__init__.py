"""Labels and reviews in one SQLite file."""
