"""Matrices with structure: the butterfly transform, and others that hold fewer weights than a dense matrix."""

# needs PyTorch, so looking for kernels leaves it alone
FAST_PATH = ("torch_structures",)
