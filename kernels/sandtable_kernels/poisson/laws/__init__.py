"""How long iterations of models by the clock and of models between items take, and what calibration times of them."""
