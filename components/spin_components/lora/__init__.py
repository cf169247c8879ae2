"""Low-rank adapters: as they lie in storage, on a model that is trained, and merged into one."""
