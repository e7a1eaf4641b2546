"""Workloads: parameters, plan and execution side by side."""

# these need PyTorch, which only executing a training run needs, so looking for workloads leaves them alone
FAST_PATH = ("training.checkpoint", "training.device", "training.model", "training.rank", "training.shard")
