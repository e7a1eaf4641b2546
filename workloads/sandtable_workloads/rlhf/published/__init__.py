"""Published figures of RLHF."""
