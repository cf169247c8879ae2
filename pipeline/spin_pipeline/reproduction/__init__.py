"""Reproduces a run from its record, and compares the new run with the recorded one."""
