"""Workloads: parameters, plan and execution side by side."""
