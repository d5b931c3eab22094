"""Train states, the pure train step, devices, checkpoints. Knows no methods."""
