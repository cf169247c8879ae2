"""Models: folders, loading, scoring, adapters, what is published."""
