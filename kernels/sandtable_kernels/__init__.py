"""Real kernels: one operation per file, each with its cost, its fast path and its reference."""
