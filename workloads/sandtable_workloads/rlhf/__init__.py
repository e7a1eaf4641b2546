"""RLHF with PPO, whose reference may be the average of several fine-tuned models: planned, and executed."""
