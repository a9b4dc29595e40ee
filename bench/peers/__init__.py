"""Adapters to other people's kernels, behind the interface of our own; load one as a plugin.

`mamba3-bench sweep --plugin mamba3_bench.bench.peers.mamba_ssm ...` adds its backend to the run.
"""
