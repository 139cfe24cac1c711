"""From classified cells to the differential count, corrected for the classifier's own mistakes."""
