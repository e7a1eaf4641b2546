"""Published figures of fine-tuning."""
