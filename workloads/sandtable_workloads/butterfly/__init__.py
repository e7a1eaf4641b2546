"""Vision networks whose pointwise convolutions are butterfly transforms (arXiv 1906.02256), or other structures."""
