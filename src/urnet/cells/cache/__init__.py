"""Cache of decoded cells on disk: storage, crops as in their files, and arrays for a network."""
