"""The differential count of classified cells, corrected for the classifier's confusion, with intervals."""
