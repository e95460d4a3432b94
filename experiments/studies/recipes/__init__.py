"""Which rule is a net that is not felt until one falls? A study under way, for the design of the default."""
