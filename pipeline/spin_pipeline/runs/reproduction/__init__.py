"""A run repeated from its record, and the two compared."""
