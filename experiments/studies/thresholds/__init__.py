"""Which rule, on every task, at a low, a good and a too high learning rate."""
