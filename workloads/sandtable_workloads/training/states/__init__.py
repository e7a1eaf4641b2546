"""What stays between steps besides weights: states of optimisers, and where they lie."""
