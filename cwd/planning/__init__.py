"""The plan that is made before a GPU hour is spent: runs, time, memory, disk, cost, and what the seeds can resolve.

It stands on the configuration, the models, the optimizers and the evidence; scripts/plan.py is its door.
"""
