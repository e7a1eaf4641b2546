"""Fits of more than one process or one memory: users shared out over ranks, and batches of users in turn."""

# imports PyTorch, where ranks execute
FAST_PATH = ("rank_workers",)
