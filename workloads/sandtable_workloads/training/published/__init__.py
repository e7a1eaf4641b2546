"""Published runs and memory of training, each file beside the adapter that predicts it."""
