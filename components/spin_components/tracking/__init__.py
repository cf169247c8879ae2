"""Metrics sent to TensorBoard, MLflow and Weights & Biases, beside the run's own storage."""
