"""Kernels in CuTe DSL (nvidia-cutlass-dsl), for GPUs of compute capability 9.0 and newer."""
