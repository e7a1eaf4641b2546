"""Training for real: processes, checkpoints, data, and the records they leave. Nothing is predicted here."""

# need PyTorch: looking for workloads leaves them alone
FAST_PATH = ("checkpoint", "decoder", "device", "shard", "worker")
