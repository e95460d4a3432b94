"""Pictures of what the other layers found."""
