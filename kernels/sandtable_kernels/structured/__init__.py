"""Matrices with structure: the butterfly transform, and others that hold fewer weights than a dense matrix."""

# need PyTorch, so looking for kernels leaves them alone
FAST_PATH = ("butterfly_cases", "torch_butterfly", "torch_layers", "torch_structures")
