"""How well the setting that is read off an unclipped run does among the rules of the study of thresholds."""
