"""Where text comes from, the packed token file, and batches as a pure function of (data, seed, step)."""
