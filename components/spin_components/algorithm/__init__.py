"""The SPIN method as pure functions: objective, log-probabilities, packing, batching, schedules, answer statistics."""
