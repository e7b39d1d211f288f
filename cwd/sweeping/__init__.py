"""Sweeps that outlive their shell: frozen code, what was handed to a scheduler, and how far the runs are.

A sweep's truth is in the run records; what is kept here (``runs/.code``, ``runs/.sweeps``, ``runs/.jobs``) only says
who was asked to work on them. Nothing here imports torch.
"""
