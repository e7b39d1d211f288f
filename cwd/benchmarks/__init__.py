"""What the project costs, measured: time, memory and exactness. Stands on everything; ``scripts/benchmark.py`` is its
door.
"""

BENCHMARKS = (  # modules of this package with a ``main(arguments)``
    "trainer",
    "optimizers",
    "memory",
    "peers",
    "loss",
    "sweep",
    "data",
    "images",
    "checkpoint",
)
