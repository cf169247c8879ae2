"""An epoch in several pods: a Kubeflow TrainJob that train-epoch creates, follows and deletes."""
