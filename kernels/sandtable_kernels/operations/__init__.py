"""Real operations, one per file: what each costs, what it does, and what is right.

Loops that need compiling lie in `sandtable_kernels.compiled`, PyTorch's operators in rooms of their own.
"""
