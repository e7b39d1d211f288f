"""What breaks on clusters, done on purpose: a SLURM of one node, a local Ray, and what happens to the runs of a sweep."""
