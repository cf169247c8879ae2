"""An epoch in several pods: a Kubeflow TrainJob that the training step creates, follows and deletes."""
