"""The web application: a web page to look, label, review and count, and an API for instruments."""
