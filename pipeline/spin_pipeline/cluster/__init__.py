"""A KFP installation: submitting to it, following a run there, schedules, and retraining."""
