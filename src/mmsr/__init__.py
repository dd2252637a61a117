"""mmsr: a notebook research kit that reproduces DeepMMSearch-R1 end to end (arXiv 2510.12801)."""

__version__ = "0.1.0"
