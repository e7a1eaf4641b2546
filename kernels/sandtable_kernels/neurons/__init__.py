"""Which neurons a token uses, and which of them are kept in memory; bookkeeping, no products."""
