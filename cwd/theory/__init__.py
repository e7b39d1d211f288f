"""The paper's theory, measured: its dynamics, Lyapunov functions, toys, convergence rate and fixed points, as runs.

``run_check(name, root)`` runs one of ``CHECKS`` and returns its record; what it found is in the record's summary.
"""

from cwd.theory.checks import CHECKS, run_check

__all__ = ["CHECKS", "run_check"]
