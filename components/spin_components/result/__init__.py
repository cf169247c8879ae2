"""What came out of a run, for the Kubeflow UI."""
