"""An epoch on several machines: a Kubeflow TrainJob that train-epoch starts, follows and ends."""
