"""The parts of benchmarks/gpu.py, each a module with `run(bench)`, and what they share."""
