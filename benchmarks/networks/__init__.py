"""The real networks that demo, tests and benchmarks use; each comes from a script in this folder."""
