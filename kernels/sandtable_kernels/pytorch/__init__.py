"""Operators of PyTorch on the host's CPUs, timed in processes of their own, and what eager mode launches for them."""

# need PyTorch: looking for kernels leaves them alone
FAST_PATH = ("layer_functions", "torch_cases", "torch_worker", "vision_cases")
