"""From a result to the few lines that answer the question it was made for."""
