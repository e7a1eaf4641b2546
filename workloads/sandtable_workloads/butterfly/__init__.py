"""Vision networks whose pointwise convolutions are butterfly transforms (arXiv 1906.02256), or other structures."""

# what runs for real needs PyTorch
FAST_PATH = ("vision_run", "vision_work")
