"""Settings of an alignment of models so tiny that all of it takes a second."""

from __future__ import annotations

from sandtable_workloads.rlhf.aligned.alignment_settings import Alignment, Fitting

FEW = Fitting(steps=4, batch=8, learning_rate=1e-3)
TINY = Alignment(
    seed=3,
    vocabulary=120,
    n_layers=1,
    d_model=16,
    n_heads=2,
    n_neurons=24,
    base=FEW,
    sft=FEW,
    reward_model=FEW,
    pairs=32,
    held_out_pairs=16,
    evaluated=16,
    checkpoint_steps=2,
)
