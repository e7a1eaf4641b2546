"""Real kernels: one operation per file, each with its cost, its fast path and its reference."""

# needs numba, which only real runs need, so looking for kernels leaves it alone
FAST_PATH = ("compiled",)
