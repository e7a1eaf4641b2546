"""Which training to choose: search, scaling laws, and a paper's findings."""
