"""Shapes of transformers, shared by the workloads that run them."""
