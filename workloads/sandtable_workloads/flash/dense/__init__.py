"""Dense inference: every weight is used for every token, from memory or read from storage; see `dense_demand`."""
