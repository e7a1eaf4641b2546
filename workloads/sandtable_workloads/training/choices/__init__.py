"""Which training to choose: search, scaling laws, and a paper's findings. How long one takes is counted outside."""
