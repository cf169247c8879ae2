"""Settings to pods: images, placement, secrets, a small compiled spec."""
