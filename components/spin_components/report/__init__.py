"""HTML report of a run, built from its storage without importing torch."""
