"""One epoch of training: DeepSpeed on any number of ranks, or plain torch on one device."""
