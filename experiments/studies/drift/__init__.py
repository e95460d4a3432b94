"""How often a rule clips when norms drift, which spikes it catches, and what a corrupted batch costs."""
