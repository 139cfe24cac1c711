"""The web application: pages to classify, label, review and count cells, and an API for instruments."""
