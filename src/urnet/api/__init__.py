"""The Python interface: NumPy arrays and paths in, arrays and data frames out. `import urnet` offers all of it."""
