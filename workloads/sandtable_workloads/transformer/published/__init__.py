"""Published times of the operators of transformer layers, by the sizes of a model."""
