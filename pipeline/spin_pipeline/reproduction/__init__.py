"""A run made again from its own record, and held against it."""
