"""Training of transformers: planned for any cluster, and executed with PyTorch."""
