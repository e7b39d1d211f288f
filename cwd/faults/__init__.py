"""What breaks on clusters, done on purpose, on a SLURM of one node and a local Ray; and what becomes of the runs."""
