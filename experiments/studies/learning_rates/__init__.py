"""How far a rule widens the range of usable learning rates."""
