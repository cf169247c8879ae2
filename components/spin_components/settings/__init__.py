"""Every setting with its limits and default."""
