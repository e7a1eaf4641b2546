"""Architectures as lists of layers: counted here, planned by the workload, built in PyTorch from the same list."""

from sandtable_workloads.butterfly.networks.layers import IMAGE, Kind, Layer, Network
from sandtable_workloads.butterfly.networks.network_names import NETWORKS, describe, network_named

__all__ = ["IMAGE", "NETWORKS", "Kind", "Layer", "Network", "describe", "network_named"]

# needs PyTorch
FAST_PATH = ("torch_network",)
