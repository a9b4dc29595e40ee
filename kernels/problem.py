"""One problem: dims, dtypes and options of a prefill or decode call, with its FLOPs and bytes."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch

from ..reference.mamba3 import Decay, Norm, Pairing, Step
from .errors import OptionError

OpName = str  # `prefill` or `decode`
Matmul = Literal["dtype", "tf32"]

CHUNK_COLUMNS = 64  # columns (tokens x ranks) of one chunk in the FLOP count

OPTIONAL = (
    "z",
    "dt_bias",
    "b_norm",
    "c_norm",
    "b_bias",
    "c_bias",
    "d",
    "mimo_x",
    "mimo_z",
    "mimo_o",
    "out_norm",
)


@dataclass(frozen=True, slots=True)
class Options:
    """The named activations and conventions in which published Mamba-3 variants differ.

    step: `softplus` of dt + dt_bias, or dt `activated` already (positive).
    decay: f in A = -max(f(a), 1e-4): `heavy_tail` (1 + u, 1/(1 - u)) or `softplus`;
    or a is `log_decay` = A D.
    norm: `rms` normalises b and c over N, or they come `normalised`.
    pairing: rotated dims are (2i, 2i + 1), `interleaved` (official SISO), or (i, i + N/2), `half`
    (official MIMO).
    matmul: `dtype` keeps the accuracy of the activations' dtype; `tf32` lets float32 products
    round to tf32.
    """

    step: Step = "softplus"
    decay: Decay = "heavy_tail"
    norm: Norm = "rms"
    pairing: Pairing = "interleaved"
    matmul: Matmul = "dtype"

    def __post_init__(self) -> None:
        choices = {"step": Step, "decay": Decay, "norm": Norm, "pairing": Pairing, "matmul": Matmul}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise OptionError(
                    f"options.{name}",
                    f"one of {get_args(kind)}",
                    repr(getattr(self, name)),
                    "choose one of these",
                )


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything an implementation, the gate and a record need to know about one call.

    `lengths` holds the sequence lengths of a packed batch (B = 1), else None. `optional` names the
    optional tensors that are present. `decode` problems have L = 1; with state_indices, `pool` is
    the number of rows of their state.
    """

    op: OpName
    B: int
    L: int
    H: int
    G: int
    P: int
    N: int
    R: int
    S: int
    dtype: torch.dtype  # of activations, k and x
    state_dtype: torch.dtype  # of h
    options: Options = Options()
    optional: tuple[str, ...] = ()
    theta_per_head: bool = False
    has_state: bool = False
    lengths: tuple[int, ...] | None = None
    pool: int | None = None

    @property
    def sequences(self) -> int:
        """Rows of the returned state."""
        if self.pool is not None:
            return self.pool
        return self.B if self.lengths is None else len(self.lengths)

    @property
    def matmul(self) -> Matmul:
        """What the operands of matrix products are rounded to."""
        return self.options.matmul

    @property
    def row_elements(self) -> int:
        """Numbers in the state of one batch row and head."""
        return self.P * self.N

    @property
    def row_numbers(self) -> int:
        """What each token adds to the state, as an outer product over 2 R ranks."""
        return self.L * 2 * self.R * max(self.N, self.P)

    @property
    def product_sums(self) -> tuple[str, ...]:
        """The outputs that are sums of products of two rounded operands."""
        return ("y", "state.h") if self.op == "prefill" else ()

    @property
    def angles(self) -> tuple[str, ...]:
        """The outputs that are angles."""
        return ("state.phi",)

    @property
    def unsteady(self) -> tuple[str, ...]:
        """With out_norm, y divides a token whose terms cancel by nearly nothing."""
        return ("y",) if "out_norm" in self.optional else ()

    @property
    def reduced(self) -> bool:
        """Whether y is (B, L, H, P), not the unreduced (B, L, R, H, P)."""
        return self.R == 1 or "mimo_o" in self.optional

    @property
    def flops(self) -> int:
        """Operations of the matrix products: the chunked form, or the recurrence for decode.

        Chunked form, per token and head: q.k and scores.x over one chunk's columns, q.S and the
        state update.
        Recurrence, per row and head: decay, two outer products of R ranks, and R read-outs.
        """
        if self.op == "decode":
            return self.B * self.H * self.P * self.N * (1 + 4 * self.R + 2 * self.R)
        per_row = 2 * (CHUNK_COLUMNS * (self.N + self.P) + 2 * self.N * self.P)
        return self.B * self.L * self.H * self.R * per_row

    @property
    def bytes(self) -> int:
        """Fewest bytes through device memory: inputs read once, outputs and states written once."""
        act, h = self.dtype.itemsize, self.state_dtype.itemsize
        wide = max(act, 4)  # angles and parameters
        per_token = (
            self.H * self.P * (1 + ("z" in self.optional))  # x, z
            + 2 * self.R * self.G * self.N  # b, c
            + 3 * self.H  # dt, a, lam
            + self.S * (self.H if self.theta_per_head else 1)
            + self.H * self.P * (1 if self.reduced else self.R)  # y
        )
        rows = self.B if self.op == "decode" else self.sequences
        small = wide * self.H * self.S + act * self.H * (self.R * self.N + self.P)  # phi, k, x
        state = rows * (h * self.H * self.P * self.N + small)
        moves = 2 if self.has_state else 1
        return act * self.B * self.L * per_token + moves * state + wide * self._param_sizes

    @property
    def _param_sizes(self) -> int:
        sizes = {
            "dt_bias": self.H,
            "b_norm": self.N,
            "c_norm": self.N,
            "b_bias": self.H * self.R * self.N,
            "c_bias": self.H * self.R * self.N,
            "d": self.H,
            "mimo_x": self.H * self.R * self.P,
            "mimo_z": self.H * self.R * self.P,
            "mimo_o": self.H * self.R * self.P,
            "out_norm": self.H * self.P,
        }
        return sum(size for name, size in sizes.items() if name in self.optional)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a record: dtypes by name, options flattened as `option.<name>`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        plain["dtype"], plain["state_dtype"] = dtype_name(self.dtype), dtype_name(self.state_dtype)
        plain["optional"] = list(self.optional)
        plain["lengths"] = None if self.lengths is None else list(self.lengths)
        return plain | {f"option.{k}": v for k, v in asdict(self.options).items()}


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
