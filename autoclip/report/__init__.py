"""Reports: text, pages and pictures of runs, sweeps and logs."""
