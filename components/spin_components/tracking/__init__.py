"""Experiment trackers: metrics sent to TensorBoard, MLflow and Weights & Biases, in addition to the run's storage."""
