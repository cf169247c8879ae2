"""Checks of a cluster before a run is submitted: a module for each subject, whose checks yield findings."""
