"""Kernels of packed attention, and the choice of one for a model and a device."""
