"""Every claim of speed or memory: `python -m benchmarks`."""
