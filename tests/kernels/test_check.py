"""Validation: what does not fit is refused before anything runs, and the message says what to do.

Every message names the tensor, what was expected, what came, and a remedy.
"""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.check import check_aligned
from mamba3_bench.kernels.errors import (
    BackendMissing,
    DeviceError,
    DtypeError,
    InputError,
    KindError,
    LayoutError,
    Mamba3Error,
    OptionError,
    RangeError,
    ShapeError,
    UnsupportedError,
)
from mamba3_bench.kernels.ops import decode, prefill
from mamba3_bench.kernels.problem import Options, Problem
from mamba3_bench.kernels.tensors import Inputs, State
from mamba3_bench.kernels.torch.prefill import Config

MakeProblem = Callable[..., Problem]
Change = Callable[[dict[str, Any]], dict[str, Any]]
Case = tuple[str, Change, type[InputError], list[str]]


def inputs(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Replace some inputs by a function of themselves."""
    return lambda a: {"inputs": changed(a["inputs"], changes)}


def params(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Replace some parameters by a function of themselves."""
    return lambda a: {"params": changed(a["params"], changes)}


def state(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Replace some tensors of the state by a function of themselves."""
    return lambda a: {"state": changed(a["state"], changes)}


def changed(tensors: Any, changes: dict[str, Any]) -> Any:
    """The same dataclass with function(tensor) for each tensor named."""
    return replace(tensors, **{n: function(getattr(tensors, n)) for n, function in changes.items()})


def other_state(**fields: int) -> Change:
    """A state of the same problem but for some dims."""

    def make(arguments: dict[str, Any]) -> dict[str, Any]:
        sizes = {"rows": 2, "H": 6, "P": 5, "N": 8, "R": 2, "S": 4} | fields
        rows, H, P, N, R, S = (sizes[d] for d in ("rows", "H", "P", "N", "R", "S"))
        shapes = (rows, H, S), (rows, H, P, N), (rows, R, H, N), (rows, H, P)
        return {"state": State(*(torch.zeros(shape) for shape in shapes))}

    return make


def cu_seqlens(*offsets: int, dtype: torch.dtype = torch.int32) -> Change:
    """Pack the first batch row as sequences with these offsets, without a state."""
    return lambda a: {
        "inputs": a["inputs"].map(lambda _, t: t[:1]),
        "state": None,
        "cu_seqlens": torch.tensor(offsets, dtype=dtype),
    }


def indices(*rows: int, dtype: torch.dtype = torch.int32) -> Change:
    """Read the state as a pool."""
    return lambda a: {"state_indices": torch.tensor(rows, dtype=dtype)}


def options(**fields: Any) -> Change:
    """Other options."""
    return lambda a: {"options": Options(**fields)}


def both(first: Change, second: Change) -> Change:
    """One change after the other."""
    return lambda a: first(a) | second(a | first(a))


def drop(*names: str) -> Change:
    """Leave parameters out."""
    return lambda a: {"params": replace(a["params"], **dict.fromkeys(names))}


ACTIVATED = both(options(step="activated"), drop("dt_bias"))


def swap(**others: Any) -> Change:
    """Other things in place of whole arguments."""
    return lambda a: others


# What every op refuses: the call has B = 2, H = 6, G = 3, P = 5, N = 8, R = 2, S = 4, float32.
SHARED: list[Case] = [
    # shape
    ("fewer dims", inputs(x=lambda t: t[0]), ShapeError, ["x:", "P", "reshape"]),
    ("other heads", inputs(dt=lambda t: t[..., :5]), ShapeError, ["dt:", "H=6", "5", "x has"]),
    ("other N", inputs(c=lambda t: t[..., :4]), ShapeError, ["c:", "N=8", "4", "b has"]),
    ("other rank", inputs(c=lambda t: t[..., :1, :, :]), ShapeError, ["c:", "R=2", "1", "b has"]),
    ("other batch", inputs(lam=lambda t: t[:1]), ShapeError, ["lam:", "B=2", "1", "x has"]),
    ("other P of z", inputs(z=lambda t: t[..., :4]), ShapeError, ["z:", "P=5", "4", "x has"]),
    (
        "G does not divide H",
        inputs(b=lambda t: t.repeat_interleave(2, -2)[..., :4, :].contiguous(),
               c=lambda t: t.repeat_interleave(2, -2)[..., :4, :].contiguous()),
        ShapeError, ["b:", "dividing H = 6", "G = 4", "divisors of H"],
    ),
    ("S = 3", inputs(theta=lambda t: t[..., :3]), ShapeError, ["theta:", "N/4 or N/2", "S = 3"]),
    ("theta of 5 heads", inputs(theta=lambda t: t.unsqueeze(-2).repeat_interleave(5, -2)),
     ShapeError, ["theta:", "H=6", "5"]),
    ("empty batch", inputs(**{n: lambda t: t[:0] for n in Inputs.__slots__}),
     ShapeError, ["x:", "no dim of size 0", "B = 0"]),
    ("bias of another rank", params(b_bias=lambda t: t[:, :1]), ShapeError,
     ["b_bias:", "R=2", "(6, 1, 8)"]),
    ("d for each row", params(d=lambda t: t.expand(2, 6)), ShapeError, ["d:", "(H=6)", "(2, 6)"]),
    ("norm over another N", params(b_norm=lambda t: t[:4]), ShapeError, ["b_norm:", "N=8", "4"]),
    ("mimo_x of other heads", params(mimo_x=lambda t: t[:3]), ShapeError, ["mimo_x:", "H=6"]),
    # dtype
    ("integers", inputs(x=lambda t: t.int()), DtypeError, ["x:", "bfloat16", "int32", "convert"]),
    ("two dtypes", inputs(lam=lambda t: t.bfloat16()), DtypeError,
     ["lam:", "float32", "bfloat16", "one dtype"]),
    ("narrow parameters", params(d=lambda t: t.bfloat16()), DtypeError,
     ["d:", "float32", "bfloat16", "full precision"]),
    ("wide parameters", params(b_norm=lambda t: t.double()), DtypeError, ["b_norm:", "float64"]),
    ("narrow angles", state(phi=lambda t: t.bfloat16()), DtypeError,
     ["state.phi:", "float32", "bfloat16"]),
    ("h of float64", state(h=lambda t: t.double()), DtypeError,
     ["state.h:", "float32 or bfloat16 or float16", "float64"]),
    ("k of another dtype than x", state(k=lambda t: t.half()), DtypeError, ["state.k:", "float16"]),
    # device
    ("input elsewhere", inputs(c=lambda t: t.to("meta")), DeviceError,
     ["c:", "device cpu", "meta", ".to('cpu')"]),
    ("parameter elsewhere", params(mimo_o=lambda t: t.to("meta")), DeviceError,
     ["mimo_o:", "cpu", "meta"]),
    ("state elsewhere", state(h=lambda t: t.to("meta")), DeviceError,
     ["state.h:", "cpu", "meta"]),
    # stride
    ("x by columns", inputs(x=lambda t: t.mT.contiguous().mT), LayoutError,
     ["x:", "last 2 dims packed", "strides", ".contiguous()"]),
    ("ranks inside", inputs(b=lambda t: t.transpose(-2, -3).contiguous().transpose(-2, -3)),
     LayoutError, ["b:", "last 3 dims packed"]),
    ("parameter with a stride", params(dt_bias=lambda t: t.repeat_interleave(2)[::2]),
     LayoutError, ["dt_bias:", "contiguous", "(2,)"]),
    ("state with a stride", state(h=lambda t: t.mT.contiguous().mT), LayoutError,
     ["state.h:", "contiguous"]),
    # range
    ("dt of 0", both(ACTIVATED, inputs(dt=lambda t: t.abs().clamp(max=0))), RangeError,
     ["dt:", "dt > 0", "step='activated'", "0.0", "softplus"]),
    ("dt below 0", both(ACTIVATED, inputs(dt=lambda t: -t.abs())), RangeError,
     ["dt:", "dt > 0", "-"]),
    ("growth", both(options(decay="log_decay"), inputs(a=lambda t: t.abs())), RangeError,
     ["a:", "a <= 0", "decay='log_decay'"]),
    # options that contradict the tensors
    ("weights without norm", options(norm="normalised"), OptionError,
     ["options.norm:", "b_norm", "normalised", "drop"]),
    ("dt_bias on activated dt", options(step="activated"), OptionError,
     ["options.step:", "dt_bias", "drop"]),
    # another class
    ("no inputs", swap(inputs=None), KindError, ["inputs:", "Inputs", "None"]),
    ("inputs of a list", swap(inputs=[]), KindError, ["inputs:", "Inputs", "builtins.list"]),
    ("x of NumPy", inputs(x=lambda t: t.numpy()), KindError,
     ["x:", "torch.Tensor", "numpy.ndarray", "torch.as_tensor"]),
    ("no x", inputs(x=lambda t: None), KindError, ["x:", "torch.Tensor", "None"]),
    ("x of lists", inputs(x=lambda t: t.tolist()), KindError, ["x:", "builtins.list"]),
    ("b of lists", inputs(b=lambda t: t.tolist()), KindError, ["b:", "builtins.list"]),
    ("no theta", inputs(theta=lambda t: None), KindError, ["theta:", "None"]),
    ("parameters by name", swap(params={"d": 1}), KindError, ["params:", "Params", "dict"]),
    ("a parameter of NumPy", params(d=lambda t: t.numpy()), KindError, ["d:", "numpy.ndarray"]),
    ("states in a row", swap(state=(1, 2)), KindError, ["state:", "State", "tuple"]),
    ("h of NumPy", state(h=lambda t: t.numpy()), KindError, ["state.h:", "numpy.ndarray"]),
    ("options by name", swap(options={"step": "softplus"}), KindError,
     ["options:", "Options", "dict", "Options(...)"]),
    ("an option", swap(options="softplus"), KindError, ["options:", "Options", "str"]),
    ("no option, by name", swap(options=""), KindError, ["options:", "Options", "str"]),
    ("no parameters, in a list", swap(params=[]), KindError, ["params:", "Params", "list"]),
    ("no parameters, by False", swap(params=False), KindError, ["params:", "Params", "bool"]),
    ("backends in a list", swap(backend=["torch"]), KindError, ["backend:", "str", "list"]),
    ("no backend", swap(backend=None), KindError, ["backend:", "str", "None"]),
    ("a config by name", swap(backend="torch", config={"chunk_size": 16}), KindError,
     ["config:", "dict", "registry.get(op, backend).configs"]),
    ("a number for config", swap(backend="torch", config=16), KindError, ["config:", "int"]),
    ("sparse x", inputs(x=lambda t: t.to_sparse()), LayoutError,
     ["x:", "dense", "torch.sparse_coo", ".to_dense()"]),
    ("step that is NaN", both(ACTIVATED, inputs(dt=lambda t: t.abs() * torch.nan)), RangeError,
     ["dt:", "dt > 0", "nan"]),
    # the state of another problem
    ("state of other N", other_state(N=16), ShapeError, ["state.h:", "N=8", "16"]),
    ("state of other P", other_state(P=8), ShapeError, ["state.h:", "P=5", "8"]),
    ("state of other heads", other_state(H=3), ShapeError, ["state.phi:", "H=6", "3"]),
    ("state of other rank", other_state(R=1), ShapeError, ["state.k:", "R=2", "1", "b has"]),
    ("state of other angles", other_state(S=2), ShapeError, ["state.phi:", "S=4", "2"]),
    ("state of other batch", other_state(rows=3), ShapeError,
     ["state.phi:", "rows=2", "3", "x has"]),
]  # fmt: skip

PREFILL: list[Case] = [
    ("other length", inputs(a=lambda t: t[:, :22].contiguous()), ShapeError,
     ["a:", "L=23", "22", "x has"]),
    ("empty length", inputs(**{n: lambda t: t[:, :0] for n in Inputs.__slots__}),
     ShapeError, ["x:", "L = 0"]),
    ("every other token", inputs(**{n: lambda t: t[:, ::2] for n in Inputs.__slots__}),
     LayoutError, ["x:", "batch stride = L x token stride"]),
    ("integer state", lambda a: {"state_dtype": torch.int8}, DtypeError,
     ["state_dtype:", "float32 or bfloat16 or float16", "int8"]),
    ("state dtype by name", swap(state_dtype="float32"), DtypeError,
     ["state_dtype:", "float32 or", "builtins.str"]),
    ("offsets of a list", both(cu_seqlens(0, 23), swap(cu_seqlens=[0, 23])), KindError,
     ["cu_seqlens:", "torch.Tensor", "list"]),
    ("offsets fall", cu_seqlens(0, 9, 5, 23), RangeError,
     ["cu_seqlens:", "never fall", "[0, 9, 5, 23]", "sort"]),
    ("offsets end early", cu_seqlens(0, 9, 22), RangeError,
     ["cu_seqlens:", "last L = 23", "22", "every token"]),
    ("offsets end late", cu_seqlens(0, 9, 24), RangeError, ["cu_seqlens:", "L = 23", "24"]),
    ("offsets start late", cu_seqlens(1, 23), RangeError, ["cu_seqlens:", "first 0", "1 and 23"]),
    ("one offset", cu_seqlens(23), ShapeError, ["cu_seqlens:", "num_sequences + 1", "(1,)"]),
    ("long offsets", cu_seqlens(0, 23, dtype=torch.int64), DtypeError,
     ["cu_seqlens:", "int32", "int64"]),
    ("packed batch of two", lambda a: {"cu_seqlens": torch.tensor([0, 23], dtype=torch.int32)},
     ShapeError, ["x:", "B = 1 with cu_seqlens", "B = 2", "pack"]),
    ("state for the batch, not the sequences",
     lambda a: cu_seqlens(0, 9, 20, 23)(a) | {"state": a["state"]},
     ShapeError, ["state.phi:", "rows=3", "2", "cu_seqlens has"]),
]  # fmt: skip

DECODE: list[Case] = [
    ("inputs of a prefill", inputs(**{n: lambda t: t.unsqueeze(1) for n in Inputs.__slots__}),
     ShapeError, ["x:"]),
    ("no state", swap(state=None), KindError, ["state:", "State", "None"]),
    ("indices of a list", swap(state_indices=[0, 1]), KindError, ["state_indices:", "list"]),
    ("an angle of many turns", state(phi=lambda t: t + 100), RangeError,
     ["state.phi:", "[0, 2 pi)", "10", "modulo 2 pi"]),
    ("an angle below 0", state(phi=lambda t: t - 7), RangeError, ["state.phi:", "to -"]),
    ("state to be trained", state(h=lambda t: t.clone().requires_grad_()), InputError,
     ["state.h:", "in place", "requires grad", "detach"]),
    ("an index for each head", indices(0, 1, 2), ShapeError, ["state_indices:", "B=2", "(3,)"]),
    ("long indices", indices(0, 1, dtype=torch.int64), DtypeError,
     ["state_indices:", "int32", "int64"]),
    ("index past the pool", indices(0, 2), RangeError, ["state_indices:", "rows 0 to 1", "2"]),
    ("index below -1", indices(-2, 0), RangeError, ["state_indices:", "-1", "-2"]),
    ("a row twice", indices(1, 1), RangeError, ["state_indices:", "at most once", "[1, 1]"]),
    ("indices elsewhere", lambda a: {"state_indices": torch.zeros(2, dtype=torch.int32,
     device="meta")}, DeviceError, ["state_indices:", "cpu", "meta"]),
]  # fmt: skip


def arguments(call: Call) -> dict[str, Any]:
    """The arguments of the op that made a call."""
    given = {"inputs": call.inputs, "params": call.params, "state": call.state}
    return given | {"options": call.problem.options}


def parameters(cases: dict[str, list[Case]]) -> list[Any]:
    """(op, change, error, parts), named by what is wrong."""
    return [
        pytest.param(op, change, error, parts, id=f"{op}: {name}")
        for op, listed in cases.items()
        for name, change, error, parts in listed
    ]


@pytest.mark.parametrize(
    ("op", "change", "error", "parts"),
    parameters({"prefill": SHARED + PREFILL, "decode": SHARED + DECODE}),
)
def test_what_does_not_fit_is_refused(
    make_problem: MakeProblem,
    seed: int,
    op: str,
    change: Change,
    error: type[InputError],
    parts: list[str],
) -> None:
    """The right error, which names tensor, expected, got and remedy; nothing is written."""
    call = make_call(make_problem(op, R=2, dtype=torch.float32), seed)
    given = arguments(call)
    run = prefill if op == "prefill" else decode
    run(**{**given, "state": given["state"].map(lambda _, t: t.clone())})  # fits as it is
    before = call.clone()
    with pytest.raises(error) as caught:
        run(**given | change(given))
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(parts[0])
    missing = [part for part in [*parts, ": expected ", ", got ", "; "] if part not in message]
    assert not missing, (missing, message)
    for (name, old), (_, new) in zip(before.final.items(), call.final.items(), strict=True):
        assert op == "prefill" or torch.equal(old, new), name


@pytest.mark.parametrize(
    ("name", "value"),
    [("step", "relu"), ("decay", "heavy"), ("norm", None), ("pairing", "halves"), ("matmul", "")],
)
def test_options_have_closed_choices(name: str, value: Any) -> None:
    """A typing error in an option is an error, with the choices in the message."""
    with pytest.raises(OptionError, match=rf"options\.{name}: expected one of .* got {value!r}"):
        Options(**{name: value})


@pytest.mark.parametrize("size", [0, -1])
def test_a_chunk_has_tokens(size: int) -> None:
    """A config of the torch backend says what it cannot be."""
    with pytest.raises(OptionError, match=rf"config.chunk_size: expected 1 or more, got {size}"):
        Config(chunk_size=size)


def test_an_angle_counts_where_its_row_is_in_use(make_problem: MakeProblem, seed: int) -> None:
    """A pool has rows that nobody decodes, with anything in them; NaN is the user's own."""
    call = make_call(make_problem("decode", pool=5), seed)
    assert call.state is not None
    assert call.state_indices is not None
    used = call.state_indices[call.state_indices >= 0].long()
    call.state.phi[[row for row in range(5) if row not in used]] = 1e9
    call.state.phi[used[0], 0] = torch.nan
    given = arguments(call) | {"state_indices": call.state_indices}
    assert bool(decode(**given)[0].isnan().any())
    call.state.phi[used[0], 0] = 7.0
    with pytest.raises(RangeError, match=r"state\.phi: expected angles in \[0, 2 pi\), got .* 7;"):
        decode(**given)


def test_states_of_a_gpu_start_on_16_bytes(make_problem: MakeProblem, seed: int) -> None:
    """Each of the four, and by its address alone."""
    state = make_call(make_problem("decode", dtype=torch.float32), seed).state
    assert state is not None
    check_aligned(state)
    for name, tensor in state.items():
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
        with pytest.raises(LayoutError, match=rf"state\.{name}: .*16 bytes, got 4 bytes past one"):
            check_aligned(replace(state, **{name: room}))


@pytest.mark.parametrize("op", ["prefill", "decode"])
@pytest.mark.parametrize("options", [Options(), Options(step="activated", decay="log_decay")])
def test_meta_tensors_are_made_but_not_computed(
    make_problem: MakeProblem, seed: int, op: str, options: Options
) -> None:
    """What compiles ahead makes calls of them; the ops refuse them."""
    call = make_call(make_problem(op, options=options), seed, "meta")
    run = prefill if op == "prefill" else decode
    with pytest.raises(DeviceError, match="x: expected a CPU or a GPU, got meta"):
        run(**arguments(call))


def test_a_state_to_be_trained_is_decoded_without_gradients(
    make_problem: MakeProblem, seed: int
) -> None:
    """With them the same call is refused, though one of its kind was remembered."""
    call = make_call(make_problem("decode"), seed)
    assert call.state is not None
    trained = call.state.map(lambda _, t: t.clone().requires_grad_())
    with torch.no_grad():
        decode(call.inputs, call.params, trained, options=call.problem.options)
    with pytest.raises(InputError, match=r"state\.phi: expected a tensor that may be updated"):
        decode(call.inputs, call.params, trained, options=call.problem.options)


def test_tf32_is_for_float32(make_problem: MakeProblem, seed: int) -> None:
    """Narrow products of inputs that are narrow, or that promise float64, make no sense."""
    for dtype in (torch.bfloat16, torch.float64):
        call = make_call(make_problem("prefill", dtype=dtype), seed)
        with pytest.raises(OptionError, match=r"options\.matmul: expected 'dtype'"):
            prefill(call.inputs, call.params, options=Options(matmul="tf32"))


def test_nan_and_infinite_decay_are_let_through(make_problem: MakeProblem, seed: int) -> None:
    """Only promises about sign are checked: a log decay of -inf forgets, NaN is the user's own."""
    call = make_call(make_problem("prefill", options=Options(decay="log_decay")), seed)
    for value in (-torch.inf, torch.nan):
        a = call.inputs.a.clone()
        a[0, 3] = value
        y, _ = prefill(replace(call.inputs, a=a), call.params, options=call.problem.options)
        assert bool(y.isfinite().all()) == (value == -torch.inf)


def test_what_is_legal_is_accepted(make_problem: MakeProblem, seed: int) -> None:
    """The edges of each rule: one group, a group per head, one token, packed empty sequences."""
    for fields in (
        {"G": 1}, {"G": 6}, {"H": 1, "G": 1}, {"L": 1}, {"B": 1, "L": 1}, {"P": 1, "N": 4, "S": 1},
        {"B": 1, "lengths": (0, 23, 0)}, {"B": 1, "lengths": (0,) * 5 + (23,)},
    ):  # fmt: skip
        problem = make_problem("prefill", **fields)
        assert make_call(problem, seed).problem == problem
    for fields in ({"B": 1}, {"G": 6}, {"pool": 2}, {"pool": 9}, {"theta_per_head": True}):
        problem = make_problem("decode", **fields)
        assert make_call(problem, seed).problem == problem


@pytest.mark.parametrize(
    "error",
    [
        ShapeError("x", "(B=2)", "(3,)", "reshape it"),
        UnsupportedError("prefill", "triton", "N = 7"),
        BackendMissing("decode", "cute", "no module"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: Mamba3Error) -> None:
    """Pickled and back, an error says the same."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert getattr(copy, "reason", None) == getattr(error, "reason", None)


def test_errors_are_caught_by_their_standard_kinds() -> None:
    """Code that knows nothing of this package catches them as ValueError and the like."""
    assert issubclass(InputError, ValueError)
    assert issubclass(UnsupportedError, NotImplementedError)
    assert issubclass(BackendMissing, LookupError)
    for kind in (InputError, UnsupportedError, BackendMissing):
        assert issubclass(kind, Mamba3Error)
