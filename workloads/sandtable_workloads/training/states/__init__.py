"""What stays between steps besides weights: states of optimisers, and where they lie."""

# imported only where a training is executed
FAST_PATH = ("torch_optimizers",)
