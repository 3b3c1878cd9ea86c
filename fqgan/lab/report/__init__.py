"""The page that `fqgan quickstart` writes: one HTML file that needs nothing else."""
