"""Operators of PyTorch on NVIDIA GPUs, each timed in a process of its own."""

# need PyTorch, or Triton: looking for kernels leaves them alone
FAST_PATH = ("cuda_cases", "cuda_worker", "structured_cases", "triton_butterfly", "triton_passes")
