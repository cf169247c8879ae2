"""The lm-evaluation-harness: task files checked, tasks found and run on a model."""
