"""Estimates of the memory of each step with a model, from its configuration and the settings, without torch."""
