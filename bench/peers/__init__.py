"""Adapters to other people's kernels, behind the interface of our own.

Each is imported when it is first looked up; one that cannot be is listed with the reason.
"""

from ...kernels.registry import add_module

# (op, backend) -> module of this package
MODULES = {
    ("prefill", "mamba_ssm"): "mamba3_prefill",
    ("prefill", "mamba_ssm_kernel"): "mamba3_prefill",
    ("decode", "mamba_ssm"): "mamba3_decode",
    ("decode", "mamba_ssm_kernel"): "mamba3_decode",
}


def register() -> None:
    """Make every adapter known, importing none."""
    for (op, backend), module in MODULES.items():
        add_module(op, backend, f"{__name__}.{module}", rival=True)
