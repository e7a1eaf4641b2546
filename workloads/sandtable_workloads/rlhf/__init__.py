"""RLHF with PPO, whose reference may be the average of several fine-tuned models: planned, and executed."""

# needs PyTorch: looking for workloads leaves it alone
FAST_PATH = ("rlhf_run",)
