"""Public benchmarks: their own files, their own scores."""
