"""Tasks with real data, benchmarks and studies; `autoclip` itself never imports this package."""
