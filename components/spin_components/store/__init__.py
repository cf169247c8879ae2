"""A run in storage: addresses, layout, digests, manifests."""
