"""Validation: from the tensors of a call to its `Problem`, or to an error with its remedy."""

import itertools
from collections.abc import Hashable
from dataclasses import MISSING, dataclass, field, fields

import torch
from torch import Tensor

from .call import capturing
from .errors import (
    DeviceError,
    DtypeError,
    InputError,
    KindError,
    LayoutError,
    OptionError,
    RangeError,
    ShapeError,
)
from .problem import OPTIONAL, OpName, Options, Problem, dtype_name
from .tensors import Inputs, Params, State, Tensors

ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INPUT_DIMS = {
    "x": "B L H P",
    "b": "B L R G N",
    "c": "B L R G N",
    "dt": "B L H",
    "a": "B L H",
    "lam": "B L H",
    "theta": "B L S",
    "z": "B L H P",
}
PARAM_DIMS = {
    "dt_bias": "H",
    "b_norm": "N",
    "c_norm": "N",
    "b_bias": "H R N",
    "c_bias": "H R N",
    "d": "H",
    "mimo_x": "H R P",
    "mimo_z": "H R P",
    "mimo_o": "H R P",
    "out_norm": "H P",
}
TAKE_CONFIG = "take one of registry.get(op, backend).configs(problem, device)"
KINDS: dict[str, type] = {
    "inputs": Inputs,
    "params": Params,
    "state": State,
    "options": Options,
}
STATE_DIMS = {"phi": "rows H S", "h": "rows H P N", "k": "rows R H N", "x": "rows H P"}


@dataclass
class Dims:
    """The dims of one call, bound by the first tensor that has them."""

    sizes: dict[str, int] = field(default_factory=dict)
    binder: dict[str, str] = field(default_factory=dict)

    def bind(self, name: str, tensor: Tensor, spec: str) -> None:
        """Check a shape against `spec`, binding the dims it is the first to have."""
        dims = spec.split()
        if tensor.ndim != len(dims):
            raise ShapeError(
                name, self.show(dims), str(tuple(tensor.shape)), "reshape it to these dims"
            )
        for dim, size in zip(dims, tensor.shape, strict=True):
            known = self.sizes.setdefault(dim, size)
            first = self.binder.setdefault(dim, name)
            if known != size:
                raise ShapeError(
                    name,
                    self.show(dims),
                    str(tuple(tensor.shape)),
                    f"{first} has {dim} = {known}: give both the same {dim}",
                )

    def show(self, dims: list[str]) -> str:
        """`(B=2, L=100, H=4)`, dims not bound yet by name alone."""
        return "(" + ", ".join(f"{d}={self.sizes[d]}" if d in self.sizes else d for d in dims) + ")"


def check_kinds(op: OpName, inputs: object, params: object, state: object, options: object) -> None:
    """Each argument is of its class, or left out if it may be; what it holds are dense tensors."""
    given = {"inputs": inputs, "params": params, "state": state, "options": options}
    for name, value in given.items():
        kind = KINDS[name]
        needed = name == "inputs" or (name == "state" and op == "decode")
        if not isinstance(value, kind) and (needed or value is not None):
            raise KindError(name, kind.__name__, got(value), f"make one: {kind.__name__}(...)")
        if isinstance(value, Tensors):
            prefix = "state." if name == "state" else ""
            for field_ in fields(value):  # type: ignore[arg-type]
                tensor = getattr(value, field_.name)
                if tensor is not None or field_.default is MISSING:
                    dense(f"{prefix}{field_.name}", tensor)


def dense(name: str, tensor: object) -> None:
    """A tensor, with strides."""
    if not isinstance(tensor, Tensor):
        raise KindError(name, "a torch.Tensor", got(tensor), "make it one with torch.as_tensor")
    if tensor.layout is not torch.strided:
        raise LayoutError(name, "a dense tensor", f"layout {tensor.layout}", "call .to_dense()")


def check_backend(backend: object) -> None:
    """A backend is named by a string."""
    if not isinstance(backend, str):
        raise KindError("backend", "a str", got(backend), "name one of registry.backends(op)")


def check_config(config: object, kind: type | None = None) -> None:
    """A config is of its backend's class; without a kind, none that cannot be remembered."""
    if kind is None and not isinstance(config, Hashable):
        raise KindError("config", "a frozen dataclass of the backend", got(config), TAKE_CONFIG)
    if kind is not None and not isinstance(config, kind):
        name = "None" if kind is type(None) else f"a {kind.__module__}.{kind.__name__}"
        raise KindError("config", name, got(config), TAKE_CONFIG)


def got(value: object) -> str:
    """The class of an argument, for a message."""
    return "None" if value is None else f"{type(value).__module__}.{type(value).__qualname__}"


def same_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Every tensor of a call lies on the device of x."""
    if tensor.device != device:
        raise DeviceError(
            name,
            f"device {device} as x has",
            str(tensor.device),
            f"move it with .to({str(device)!r})",
        )


def has_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...], why: str) -> None:
    """The dtype of a tensor is one of `allowed`."""
    if tensor.dtype not in allowed:
        names = " or ".join(dtype_name(d) for d in allowed)
        raise DtypeError(
            name, f"{names} ({why})", dtype_name(tensor.dtype), f"convert it to {names}"
        )


def packed_tokens(name: str, tensor: Tensor, lead: int) -> None:
    """The dims after the first `lead` are contiguous, and a batch is L token strides."""
    expected = 1
    for size, stride in zip(
        reversed(tensor.shape[lead:]), reversed(tensor.stride()[lead:]), strict=True
    ):
        if size > 1 and stride != expected:
            raise LayoutError(
                name,
                f"the last {tensor.ndim - lead} dims packed",
                f"strides {tensor.stride()}",
                "call .contiguous() or slice the projection along its last dim",
            )
        expected *= size
    if lead == 2:
        B, L = tensor.shape[:2]
        if B > 1 and L > 1 and tensor.stride(0) != L * tensor.stride(1):
            raise LayoutError(
                name,
                "batch stride = L x token stride",
                f"strides {tensor.stride()}",
                "call .contiguous()",
            )


def contiguous(name: str, tensor: Tensor) -> None:
    """Parameters and states are read and written where they lie."""
    if not tensor.is_contiguous():
        raise LayoutError(
            name,
            "a contiguous tensor",
            f"strides {tensor.stride()}",
            "call .contiguous() once, when you store it",
        )


def check_inputs(inputs: Inputs, dims: Dims, op: OpName) -> bool:
    """Shapes, dtype, device and strides of the inputs; returns whether theta is per head."""
    x = inputs.x
    has_dtype("x", x, ACTIVATIONS, "the activations' dtype")
    lead = 2 if op == "prefill" else 1
    theta_per_head = inputs.theta.ndim == lead + 2
    for name, tensor in inputs.items():
        spec = INPUT_DIMS[name]
        if name == "theta" and theta_per_head:
            spec = "B L H S"
        dims.bind(name, tensor, spec if op == "prefill" else spec.replace("L ", ""))
        same_device(name, tensor, x.device)
        has_dtype(name, tensor, (x.dtype,), "as x has: one dtype for all inputs")
        packed_tokens(name, tensor, lead)
    for dim, size in dims.sizes.items():
        if size == 0:
            raise ShapeError(
                dims.binder[dim],
                "no dim of size 0",
                f"{dim} = 0",
                "skip the call: there is nothing to do",
            )
    H, G, N, S = (dims.sizes[d] for d in ("H", "G", "N", "S"))
    if H % G:
        raise ShapeError(
            "b", f"groups G dividing H = {H}", f"G = {G}", "choose G among the divisors of H"
        )
    if N % 4 or S not in (N // 4, N // 2):
        raise ShapeError(
            "theta",
            f"S = N/4 or N/2 with N = {N}",
            f"S = {S}",
            "rotate a quarter or a half of N pairs",
        )
    return theta_per_head


def check_params(params: Params, dims: Dims, x: Tensor) -> None:
    """Shapes, dtype, device and strides of the parameters."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, tensor in params.items():
        dims.bind(name, tensor, PARAM_DIMS[name])
        same_device(name, tensor, x.device)
        has_dtype(name, tensor, (dtype,), "parameters are kept in full precision")
        contiguous(name, tensor)


def state_dtypes(x: Tensor) -> tuple[torch.dtype, ...]:
    """The dtypes h may have; the first is the default."""
    if x.dtype == torch.float64:
        return (torch.float64,)
    return torch.float32, torch.bfloat16, torch.float16


def check_state(state: State, dims: Dims, x: Tensor) -> None:
    """Shapes, dtypes, device and strides of a state."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtypes = {
        "phi": ((wide,), "angles are kept in full precision"),
        "h": (state_dtypes(x), "the choices for a state"),
        "k": ((x.dtype,), "the activations' dtype"),
        "x": ((x.dtype,), "the activations' dtype"),
    }
    for name, tensor in state.items():
        dims.bind(f"state.{name}", tensor, STATE_DIMS[name])
        same_device(f"state.{name}", tensor, x.device)
        has_dtype(f"state.{name}", tensor, *dtypes[name])
        contiguous(f"state.{name}", tensor)
    if x.is_cuda:
        check_aligned(state)


def check_aligned(state: State) -> None:
    """On a GPU states are read 16 bytes at a time; looked at in every call, for addresses vary."""
    if any(tensor.data_ptr() % 16 for tensor in state.every()):
        name, tensor = next(one for one in state.items() if one[1].data_ptr() % 16)
        raise LayoutError(
            f"state.{name}",
            "a start on a multiple of 16 bytes",
            f"{tensor.data_ptr() % 16} bytes past one",
            "call .clone() once, when you store it",
        )


def check_cu_seqlens(cu_seqlens: Tensor, dims: Dims, x: Tensor) -> tuple[int, ...]:
    """Check 0 = c_0 <= c_1 <= ... = L, int32, B = 1; returns the lengths, read on the host."""
    name, B, L = "cu_seqlens", dims.sizes["B"], dims.sizes["L"]
    dense(name, cu_seqlens)
    has_dtype(name, cu_seqlens, (torch.int32,), "token offsets")
    same_device(name, cu_seqlens, x.device)
    contiguous(name, cu_seqlens)
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2:
        raise ShapeError(
            name, "(num_sequences + 1)", str(tuple(cu_seqlens.shape)), "give at least one sequence"
        )
    if B != 1:
        raise ShapeError("x", "B = 1 with cu_seqlens", f"B = {B}", "pack all sequences along L")
    offsets = cu_seqlens.tolist()
    lengths = tuple(stop - start for start, stop in itertools.pairwise(offsets))
    if offsets[0] != 0 or offsets[-1] != L:
        raise RangeError(
            name,
            f"first 0 and last L = {L}",
            f"{offsets[0]} and {offsets[-1]}",
            "cover every token once",
        )
    if min(lengths) < 0:
        raise RangeError(name, "offsets that never fall", str(offsets), "sort the offsets")
    return lengths


def check_options(options: Options, params: Params, x: Tensor) -> None:
    """Options that contradict the tensors given."""
    if options.norm == "normalised" and (params.b_norm is not None or params.c_norm is not None):
        raise OptionError(
            "options.norm", "'rms' with b_norm or c_norm", "'normalised'", "drop the norm weights"
        )
    if options.step == "activated" and params.dt_bias is not None:
        raise OptionError("options.step", "'softplus' with dt_bias", "'activated'", "drop dt_bias")
    if options.matmul == "tf32" and x.dtype != torch.float32:
        raise OptionError(
            "options.matmul",
            "'dtype' unless the activations are float32",
            "'tf32'",
            "use float32 inputs",
        )


def check_prefill(
    inputs: Inputs,
    params: Params,
    state: State | None,
    cu_seqlens: Tensor | None,
    options: Options,
    state_dtype: torch.dtype | None,
) -> Problem:
    """The problem of a prefill call, or an error."""
    check_kinds("prefill", inputs, params, state, options)
    dims = Dims()
    theta_per_head = check_inputs(inputs, dims, "prefill")
    check_params(params, dims, inputs.x)
    check_options(options, params, inputs.x)
    lengths = None
    if cu_seqlens is not None:
        if capturing(inputs.x):
            raise OptionError(
                "cu_seqlens",
                "no packed sequences under graph capture",
                "a capturing stream",
                "capture with fixed-length batches: lengths are read on the host",
            )
        lengths = check_cu_seqlens(cu_seqlens, dims, inputs.x)
    dims.sizes["rows"] = dims.sizes["B"] if lengths is None else len(lengths)
    dims.binder["rows"] = "x" if lengths is None else "cu_seqlens"
    if state is not None:
        check_state(state, dims, inputs.x)
    if state_dtype is None:
        state_dtype = state_dtypes(inputs.x)[0] if state is None else state.h.dtype
    elif state_dtype not in state_dtypes(inputs.x):
        names = " or ".join(dtype_name(d) for d in state_dtypes(inputs.x))
        raise DtypeError(
            "state_dtype",
            f"{names} with {dtype_name(inputs.x.dtype)} inputs",
            dtype_name(state_dtype) if isinstance(state_dtype, torch.dtype) else got(state_dtype),
            "choose one of these",
        )
    return _problem(
        "prefill",
        dims.sizes,
        inputs,
        params,
        options,
        state_dtype,
        theta_per_head,
        has_state=state is not None,
        lengths=lengths,
    )


def check_decode(
    inputs: Inputs, params: Params, state: State, state_indices: Tensor | None, options: Options
) -> Problem:
    """The problem of a decode call, or an error."""
    check_kinds("decode", inputs, params, state, options)
    dims = Dims()
    theta_per_head = check_inputs(inputs, dims, "decode")
    check_params(params, dims, inputs.x)
    check_options(options, params, inputs.x)
    if state_indices is None:
        dims.sizes["rows"], dims.binder["rows"] = dims.sizes["B"], "x"
    else:
        dense("state_indices", state_indices)
        has_dtype("state_indices", state_indices, (torch.int32,), "rows of the state pool")
        same_device("state_indices", state_indices, inputs.x.device)
        contiguous("state_indices", state_indices)
        dims.bind("state_indices", state_indices, "B")
    check_state(state, dims, inputs.x)
    for name, tensor in state.items():
        if tensor.requires_grad and tensor.is_leaf and torch.is_grad_enabled():
            raise InputError(
                f"state.{name}",
                "a tensor that may be updated in place",
                "a leaf that requires grad",
                "detach it, or decode under torch.no_grad()",
            )
    pool = None if state_indices is None else dims.sizes["rows"]
    return _problem(
        "decode",
        dims.sizes | {"L": 1},
        inputs,
        params,
        options,
        state.h.dtype,
        theta_per_head,
        has_state=True,
        pool=pool,
    )


def _problem(
    op: OpName,
    sizes: dict[str, int],
    inputs: Inputs,
    params: Params,
    options: Options,
    state_dtype: torch.dtype,
    theta_per_head: bool,
    *,
    has_state: bool,
    lengths: tuple[int, ...] | None = None,
    pool: int | None = None,
) -> Problem:
    present = {name for name, _ in inputs.items() + params.items()}
    return Problem(
        op=op,
        **{dim: sizes[dim] for dim in ("B", "L", "H", "G", "P", "N", "R", "S")},
        dtype=inputs.x.dtype,
        state_dtype=state_dtype,
        options=options,
        optional=tuple(name for name in OPTIONAL if name in present),
        theta_per_head=theta_per_head,
        has_state=has_state,
        lengths=lengths,
        pool=pool,
    )
