"""Training on several ranks with autoclip."""
