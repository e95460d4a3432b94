"""Choosing a setting: how a run is scored, and the sweep over candidates."""
