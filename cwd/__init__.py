"""Cautious weight decay: an optimizer library, and the instrument that checks the paper's claims (arXiv 2510.12402)."""

__version__ = "0.1.0"
