"""From runs to tables: the paper's numbers, paired statistics, rendering. Reads records only; needs no torch."""
