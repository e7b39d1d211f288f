"""Downstream evaluation of finished runs by lm-evaluation-harness (Tables 4 and 5)."""
