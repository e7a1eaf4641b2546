"""Soups: checkpoints averaged in weight space, read and written as a stream."""
