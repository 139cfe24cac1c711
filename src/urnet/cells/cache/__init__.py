"""Cache of decoded cells on disk."""
