"""Training: losses, optimizers, the train step, devices, checkpoints and the loop."""
