"""Whole training steps, in which calibration times the operators of training."""

# needs PyTorch: looking for kernels leaves it alone
FAST_PATH = ("torch_step",)
