"""Real kernels: one operation per file, each with its cost, its fast path and its reference."""

# these need numba or PyTorch, which only real runs need, so looking for kernels leaves them alone
FAST_PATH = (
    "cuda_cases",
    "cuda_worker",
    "fastio",
    "fastlinear",
    "fastmath",
    "fastmemory",
    "fastweights",
    "torch_cases",
    "torch_worker",
)
