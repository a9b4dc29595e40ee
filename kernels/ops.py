"""The op interface: `prefill` and `decode`, all between a Mamba-3 layer's two projections.

The first call of a kind is validated and finds its implementation; what it found is remembered, so
that the next ones cost little more than their launch (`plans.py`).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import plans
from .call import Call, capturing, empty, new_state, readable, y_shape
from .check import (
    check_aligned,
    check_backend,
    check_config,
    check_decode,
    check_kinds,
    check_prefill,
)
from .errors import DeviceError
from .problem import Options
from .registry import Config, choose
from .tensors import Inputs, Params, State
from .values import check_values

NO_PARAMS = Params()
NO_STATE = (None,) * 4
HERE = nullcontext()


def prefill(
    inputs: Inputs,
    params: Params | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    options: Options | None = None,
    *,
    state_dtype: torch.dtype | None = None,
    backend: str = "auto",
    config: Config = None,
) -> tuple[Tensor, State]:
    """Run whole sequences through the Mamba-3 recurrence (arXiv 2603.15569).

    inputs, params, state: see `Inputs`, `Params`, `State` for shapes and dtypes. No state means
    fresh sequences.
    cu_seqlens: (num_sequences + 1) int32 token offsets of sequences packed into B = 1; read on
    the host, each time.
    state_dtype: dtype of the returned h; by default that of the given state, else float32.
    backend: `auto`, or one of `registry.backends("prefill")`. config: one of that backend's own
    configs.
    Returns y, (B, L, H, P) in the dtype of x, or (B, L, R, H, P) for R > 1 without params.mimo_o;
    and a new state.
    Where autograd records and a tensor requires grad, a backend is needed that has gradients:
    `auto` takes one and warns, another one refuses.
    NaN reaches what depends on it; but TileLang, whose angles are integers, does not hand on that
    of theta or of state.phi.
    Raises InputError for tensors that do not fit, UnsupportedError and BackendMissing for the
    backend. Values that an option promises (dt > 0, a <= 0) are looked at on the CPU; on a GPU,
    where reading them waits for the device, only in calls that are validated in full: the first of
    a kind, those with packed sequences, and those that give one tensor under two names.
    """
    try:  # costs nothing where nothing is raised
        params = NO_PARAMS if params is None else params
        old = NO_STATE if state is None else state.every()
        tensors = (*inputs.every(), *params.every(), *old)
        gradients = _wanted(tensors)
        key = plans.key_of(("prefill", backend, config, options, state_dtype, gradients), tensors)
        plan = None if cu_seqlens is not None else plans.find(key, tensors)
    except (AttributeError, TypeError):
        check_kinds("prefill", inputs, params, state, options)
        check_backend(backend)
        check_config(config)
        raise
    if plan is None:
        call = prefill_call(inputs, params, state, cu_seqlens, options, state_dtype)
        launch = _first_launch(call, backend, config, gradients=gradients)
        if cu_seqlens is None and not capturing(inputs.x):  # lengths are values
            plans.remember(key, tensors, call.problem, launch)
    else:
        y = empty(plan.y_shape, inputs.x.dtype, inputs.x.device)
        final = new_state(plan.problem, inputs.x.device)
        call = Call(plan.problem, inputs, params, state, final, y)
        _check_again(call)
        with _device_of(call):
            plan.launch(call)
    return call.y, call.final


def decode(
    inputs: Inputs,
    params: Params | None,
    state: State,
    state_indices: Tensor | None = None,
    options: Options | None = None,
    *,
    backend: str = "auto",
    config: Config = None,
) -> Tensor:
    """Advance each row by one token; `state` is updated in place.

    inputs: as for prefill without the dim L. state: (B, ...) or, with state_indices, a pool of
    rows.
    state_indices: (B) int32, the pool row of each batch row, none twice; -1 marks a padding row,
    which is neither read nor written (its y is undefined). Checked on the CPU only: a GPU's values
    are the caller's promise.
    Returns y, (B, H, P) in the dtype of x, or (B, R, H, P) for R > 1 without params.mimo_o.
    Raises InputError for tensors that do not fit, UnsupportedError and BackendMissing for the
    backend; gradients and values (with angles in [0, 2 pi)) as for prefill. Autograd is told that
    the state has changed.
    """
    try:
        params = NO_PARAMS if params is None else params
        tensors = (*inputs.every(), *params.every(), *state.every(), state_indices)
        gradients = _wanted(tensors[:-1])
        key = plans.key_of(("decode", backend, config, options, gradients), tensors)
        plan = plans.find(key, tensors)
    except (AttributeError, TypeError):
        check_kinds("decode", inputs, params, state, options)
        check_backend(backend)
        check_config(config)
        raise
    if plan is None:
        call = decode_call(inputs, params, state, state_indices, options)
        launch = _first_launch(call, backend, config, gradients=gradients)
        # under capture values have not been looked at; a state with gradients is refused or not
        # by a mode that is no fact
        if not capturing(inputs.x) and not any(tensor.requires_grad for tensor in state.every()):
            plans.remember(key, tensors, call.problem, launch)
    else:
        y = empty(plan.y_shape, inputs.x.dtype, inputs.x.device)
        call = Call(plan.problem, inputs, params, state, state, y, state_indices=state_indices)
        _check_again(call)
        with _device_of(call):
            plan.launch(call)
    torch.autograd.graph.increment_version(state.every())
    return call.y


def _wanted(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd is to differentiate a call."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def _first_launch(call: Call, backend: str, config: Config, *, gradients: bool) -> plans.Launch:
    """Choose, prepare and launch what runs a validated call; returns it for the next ones."""
    device = call.inputs.x.device
    if device.type == "meta":
        remedy = "make the tensors where they are to be computed"
        raise DeviceError("x", "a CPU or a GPU", "meta", remedy)
    check_backend(backend)
    implementation = choose(call.problem.op, backend, call.problem, device, gradients=gradients)
    if config is not None:
        check_config(config, type(implementation.default(call.problem, device)))
    with _device_of(call):
        launch = implementation.ready(call, config or implementation.chosen(call.problem, device))
        launch(call)
    return launch


def _check_again(call: Call) -> None:
    """What no earlier call has vouched for: values on a CPU, addresses on a GPU."""
    if not call.y.is_cuda:
        check_values(call)
    elif call.state is not None:
        check_aligned(call.state)


def _device_of(call: Call) -> AbstractContextManager[Any]:
    """The GPU of a call's tensors made the current one, if it is not."""
    device = call.y.device
    if device.type != "cuda" or device.index == torch._C._cuda_getDevice():
        return HERE
    return torch.cuda.device(device)


def prefill_call(
    inputs: Inputs,
    params: Params | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    options: Options | None = None,
    state_dtype: torch.dtype | None = None,
) -> Call:
    """Validate a prefill and allocate what it writes; arguments as for `prefill`."""
    params = NO_PARAMS if params is None else params
    options = Options() if options is None else options
    problem = check_prefill(inputs, params, state, cu_seqlens, options, state_dtype)
    y = empty(y_shape(problem), inputs.x.dtype, inputs.x.device)
    final = new_state(problem, inputs.x.device)
    call = Call(problem, inputs, params, state, final, y, cu_seqlens=cu_seqlens)
    if readable(inputs.x):
        check_values(call)
    return call


def decode_call(
    inputs: Inputs,
    params: Params | None,
    state: State,
    state_indices: Tensor | None = None,
    options: Options | None = None,
) -> Call:
    """Validate a decode step and allocate its output; arguments as for `decode`."""
    params = NO_PARAMS if params is None else params
    options = Options() if options is None else options
    problem = check_decode(inputs, params, state, state_indices, options)
    y = empty(y_shape(problem), inputs.x.dtype, inputs.x.device)
    call = Call(problem, inputs, params, state, state, y, state_indices=state_indices)
    if readable(inputs.x):
        check_values(call)
    return call
