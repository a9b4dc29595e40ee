"""Families of ops: Mamba-3, and the layers that it is compared with."""
