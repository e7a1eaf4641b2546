"""Published figures of inference with weights in flash."""
