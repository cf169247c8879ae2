"""Published models on tasks of a harness, and before a judge: optional, and nothing waits for it."""
