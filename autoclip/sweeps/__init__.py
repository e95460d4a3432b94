"""Sweeps: candidates, runs on any engine, scores and the choice among them."""
