"""Training a few added weights beside frozen ones, which may be packed: memory, demands, plan and closed form.

Training of all weights is `sandtable_workloads.training`, whose demands of single operators are used here.
"""
