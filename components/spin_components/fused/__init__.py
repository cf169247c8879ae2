"""Two steps in one pod, one after the other, where `cluster.fuse` asks for it."""
