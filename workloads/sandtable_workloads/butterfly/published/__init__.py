"""Published figures of networks whose pointwise layers are butterfly transforms."""
