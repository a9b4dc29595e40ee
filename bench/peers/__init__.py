"""Adapters to other people's kernels, behind the interface of our own.

Each is imported when it is first looked up; one that cannot be is listed with the reason and with
what to install. None is ever chosen by `auto`, and a sweep has them only by name or by a preset.
"""

from typing import NamedTuple

from ...kernels.registry import add_module
from ..hardware import package_versions


class Library(NamedTuple):
    """Where an adapter's kernels come from."""

    package: str  # its distribution
    install: str


MAMBA = Library(
    "mamba-ssm",
    "MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm; "
    "its newest Mamba-3 kernels as docs/rivals.md says",
)
FLA = Library("flash-linear-attention", "pip install flash-linear-attention")
FLASHINFER = Library("flashinfer-python", "pip install flashinfer-python")
TORCH = Library("torch", "pip install torch")

# (op, backend) -> module of this package, library
PEERS = {
    ("prefill", "mamba_ssm"): ("mamba3_prefill", MAMBA),
    ("prefill", "mamba_ssm_kernel"): ("mamba3_prefill", MAMBA),
    ("decode", "mamba_ssm"): ("mamba3_decode", MAMBA),
    ("decode", "mamba_ssm_kernel"): ("mamba3_decode", MAMBA),
    ("mamba2.prefill", "mamba_ssm"): ("mamba2", MAMBA),
    ("mamba2.decode", "mamba_ssm"): ("mamba2", MAMBA),
    ("mamba2.decode", "flashinfer"): ("mamba2_flashinfer", FLASHINFER),
    ("gdn.prefill", "fla"): ("gated_deltanet", FLA),
    ("gdn.prefill", "flashinfer"): ("gated_deltanet_flashinfer", FLASHINFER),
    ("gdn.decode", "fla"): ("gated_deltanet", FLA),
    ("gdn.decode", "flashinfer"): ("gated_deltanet_flashinfer", FLASHINFER),
    ("attention.prefill", "sdpa"): ("attention", TORCH),
    ("attention.decode", "sdpa"): ("attention", TORCH),
}


rehearsing = False  # in this process: then no tuner need find its fastest config


def register() -> None:
    """Make every adapter known, importing none."""
    for (op, backend), (module, library) in PEERS.items():
        add_module(op, backend, f"{__name__}.{module}", rival=True, install=library.install)


def version(op: str, backend: str) -> str | None:
    """The package of a rival and its version; None for our own backends and for missing ones."""
    if (op, backend) not in PEERS:
        return None
    package = PEERS[op, backend][1].package
    found = package_versions().get(package)
    return found and f"{package} {found}"
