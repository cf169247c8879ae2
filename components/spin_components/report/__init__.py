"""A run as one page for people: built from its storage alone, with nothing heavy imported."""
