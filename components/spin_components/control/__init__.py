"""Supervised fine-tuning with as many updates as an iteration, to compare with it."""
