"""The SPIN objective and what surrounds it: pure functions on tensors and plain values."""
