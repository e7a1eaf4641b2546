"""RLHF for real with PyTorch: a text task, fine-tuning, a reward model, PPO with a chosen reference, evaluation."""

# need PyTorch, or are a command of their own: looking for workloads leaves them alone
FAST_PATH = (
    "advantages",
    "alignment_evaluation",
    "alignment_pipeline",
    "cached_generation",
    "fitted_phases",
    "policy_model",
    "ppo_phase",
    "resumable_loop",
    "run_alignment",
)
