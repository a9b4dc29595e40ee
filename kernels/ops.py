"""The op interface: `prefill` and `decode`, all between a Mamba-3 layer's two projections."""

import torch
from torch import Tensor

from .call import Call, new_state, new_y
from .check import check_decode, check_prefill
from .problem import Options
from .registry import Config, choose
from .tensors import Inputs, Params, State


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
    the host.
    state_dtype: dtype of the returned h; by default that of the given state, else float32.
    backend: `auto`, or one of `registry.backends("prefill")`. config: one of that backend's own
    configs.
    Returns y, (B, L, H, P) in the dtype of x, or (B, L, R, H, P) for R > 1 without params.mimo_o;
    and a new state.
    Raises InputError for tensors that do not fit, UnsupportedError and BackendMissing for the
    backend.
    """
    call = prefill_call(inputs, params, state, cu_seqlens, options, state_dtype)
    implementation = choose("prefill", backend, call.problem, inputs.x.device)
    implementation.run(call, config or implementation.default(call.problem, inputs.x.device))
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
    backend.
    """
    call = decode_call(inputs, params, state, state_indices, options)
    implementation = choose("decode", backend, call.problem, inputs.x.device)
    implementation.run(call, config or implementation.default(call.problem, inputs.x.device))
    return call.y


def prefill_call(
    inputs: Inputs,
    params: Params | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | None = None,
    options: Options | None = None,
    state_dtype: torch.dtype | None = None,
) -> Call:
    """Validate a prefill and allocate what it writes; arguments as for `prefill`."""
    params, options = params or Params(), options or Options()
    problem = check_prefill(inputs, params, state, cu_seqlens, options, state_dtype)
    final = new_state(problem, inputs.x.device)
    return Call(
        problem, inputs, params, state, final, new_y(inputs, problem), cu_seqlens=cu_seqlens
    )


def decode_call(
    inputs: Inputs,
    params: Params | None,
    state: State,
    state_indices: Tensor | None = None,
    options: Options | None = None,
) -> Call:
    """Validate a decode step and allocate its output; arguments as for `decode`."""
    params, options = params or Params(), options or Options()
    problem = check_decode(inputs, params, state, state_indices, options)
    return Call(
        problem, inputs, params, state, state, new_y(inputs, problem), state_indices=state_indices
    )
