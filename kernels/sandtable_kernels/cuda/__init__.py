"""Operators of PyTorch on NVIDIA GPUs, each timed in a process of its own."""

# need PyTorch: looking for kernels leaves them alone
FAST_PATH = ("cuda_cases", "cuda_worker")
