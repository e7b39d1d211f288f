"""A run's identity, folder, metrics and status: written by training, read by evidence. Needs no torch, but for
environment.py.
"""

from cwd.runs.metrics import MetricsLog, read_metrics
from cwd.runs.record import Record, all_records, run_key

__all__ = ["MetricsLog", "Record", "all_records", "read_metrics", "run_key"]
