"""Studies: one folder for each question, with its YAML, command, raw results, figure and README."""
