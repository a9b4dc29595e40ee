"""Promises that only the values of tensors can break; reading them waits for the device."""

from torch import Tensor

from .call import Call
from .errors import RangeError
from .tensors import State

TWO_PI = 6.2831854820251465  # the float32 next to it, which rounding may reach


def check_values(call: Call) -> None:
    """Raise RangeError for a step that is not positive, a decay that grows, a bad pool row, or an
    angle that a decode step would not bring back by one turn."""
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
    if call.problem.op == "decode" and call.state is not None:
        check_angles(call.state, call.state_indices)


def check_angles(state: State, state_indices: Tensor | None) -> None:
    """Angles lie in [0, 2 pi) where a row is in use; NaN is an angle like any other number."""
    phi = state.phi
    if state_indices is not None:
        phi = phi[state_indices[state_indices >= 0].long()]
    if bool(((phi < 0) | (phi > TWO_PI)).any()):
        raise RangeError(
            "state.phi",
            "angles in [0, 2 pi)",
            f"{float(phi.min()):.4g} to {float(phi.max()):.4g}",
            "take them modulo 2 pi: state.phi.remainder_(2 * math.pi)",
        )


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
