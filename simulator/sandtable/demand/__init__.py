"""Demands: what a workload asks of a machine, with no time in it.

Here are operators, plans made of them, and the seams of what brings real operations and instruments. How long anything
takes belongs to `sandtable.model`, and what a workload is to `sandtable.workload`.
"""
