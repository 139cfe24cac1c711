"""Labelled crops: the table, its split and audit, and batches of tensors made from it."""
