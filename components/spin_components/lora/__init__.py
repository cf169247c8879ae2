"""Low-rank adapters: their files, their layers in a model, and merging."""
