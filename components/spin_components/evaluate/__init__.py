"""Models on tasks of a harness, and before a judge: optional, beside training or before a verdict."""
