"""The reference plays: one sampled answer a prompt."""
