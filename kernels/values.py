"""Promises that only the values of tensors can break; reading them waits for the device."""

from torch import Tensor

from .call import Call
from .errors import RangeError


def check_values(call: Call) -> None:
    """Raise RangeError for a step that is not positive, a decay that grows, or a bad pool row."""
    inputs, options = call.inputs, call.problem.options
    if options.step == "activated" and not bool((inputs.dt > 0).all()):  # NaN is not above 0
        raise RangeError(
            "dt",
            "every dt > 0 (step='activated')",
            f"minimum {float(inputs.dt.min())}",
            "apply softplus first, or use step='softplus'",
        )
    if options.decay == "log_decay" and bool((inputs.a > 0).any()):
        raise RangeError(
            "a",
            "every a <= 0 (decay='log_decay')",
            f"maximum {float(inputs.a.max())}",
            "pass A D with A < 0, or another decay",
        )
    if call.state_indices is not None and not call.state_indices.is_cuda:
        check_indices(call.state_indices, call.problem.sequences)


def check_indices(state_indices: Tensor, rows: int) -> None:
    """Rows within the pool, none twice; on a GPU the caller's promise."""
    indices = state_indices.tolist()
    if min(indices) < -1 or max(indices) >= rows:
        raise RangeError(
            "state_indices",
            f"rows 0 to {rows - 1} of the pool, or -1",
            f"{min(indices)} to {max(indices)}",
            "pass the pool that these rows are of",
        )
    taken = [row for row in indices if row >= 0]
    if len(set(taken)) < len(taken):
        raise RangeError(
            "state_indices",
            "each row of the pool at most once",
            str(indices),
            "a row's state is updated in place: decode its tokens one after the other",
        )
