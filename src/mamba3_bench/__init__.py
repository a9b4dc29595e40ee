"""Benchmarks, correctness gates and kernels for Mamba-3 (arXiv 2603.15569)."""

__version__ = "0.1.0"
