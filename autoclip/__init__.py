"""A gradient-clipping threshold that sets itself from the gradient norms."""
