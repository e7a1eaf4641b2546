"""Training of transformers: planned for any cluster, and executed with PyTorch.

What a step demands is written once, for the engine's plan and for the closed form. Choosing among runs is in
``choices``, running for real in ``executed``, training beside frozen weights in `sandtable_workloads.finetuning`.
"""
