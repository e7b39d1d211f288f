"""What the project costs, measured: time, memory and exactness. Stands on everything; ``scripts/benchmark.py`` is its
door.
"""

BENCHMARKS = (
    "trainer",
    "optimizers",
    "memory",
    "peers",
    "images",
)  # modules of this package with a ``main(arguments)``
