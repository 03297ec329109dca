"""Pages about what was trained, from its results."""
