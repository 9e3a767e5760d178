"""Performance as ratios, measured in one run against a peer or a limit: python -m benchmarks.NAME [--quick]."""
