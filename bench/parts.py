"""What the plain parts of a record hold: read here, so that nobody meets a surprise later.

Names that are not known are let through: a family may have dims of its own, and a newer version
may tell more of its machine.
"""

from typing import NotRequired, TypedDict


class Problem(TypedDict):
    """Dims, dtypes and options, as the problems of all families have them."""

    op: str
    B: int
    L: int
    H: int
    P: int
    N: int
    dtype: str
    state_dtype: str
    has_state: bool
    G: NotRequired[int | None]
    R: NotRequired[int | None]
    S: NotRequired[int | None]
    lengths: NotRequired[list[int] | None]
    optional: NotRequired[list[str]]
    pool: NotRequired[int | None]


class Environment(TypedDict, total=False):
    """The machine, its software, and the run."""

    device: str
    gpu: str | None
    gpu_uuid: str | None
    compute_capability: str | None
    sm_count: int | None
    l2_bytes: int | None
    memory_bytes: int | None
    shared_per_block: int | None
    cpu: str | None
    cpu_count: int | None
    threads: int | None
    driver: str | None
    cuda: str | None
    ptxas: str | None
    nvcc: str | None
    python: str | None
    packages: dict[str, str] | None
    version: str | None
    commit: str | None
    dirty: bool | None
    interpreted: bool | None
    date: str | None
    command: str | None
    ceilings: dict[str, float] | None


class Place(TypedDict):
    """Of a config in a tuning."""

    index: int
    of: int
    names: list[str]


class Kernel(TypedDict):
    """What a compiled kernel takes."""

    kernel: str
    registers: int
    spills: int
    shared: int
    threads: int
