"""The data pipeline on the host: files, tokens, rows and batches as NumPy arrays. JAX is not imported here."""
