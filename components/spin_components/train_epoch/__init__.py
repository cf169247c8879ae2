"""Train the policy for one epoch of an iteration."""
