"""The arguments of a step of Mamba-2's state, whose function has the same form in two libraries."""

from ...kernels.bound import Arguments
from ...kernels.plain import PlainCall


def step_arguments(call: PlainCall) -> Arguments:
    """Scalars of a head expanded to its elements, as views: so the kernel knows them for scalars.

    The state is the call's own, updated in place.
    """
    p, t = call.problem, call.inputs
    return {
        "state": call.final["h"],
        "x": t["x"],
        "dt": t["dt"].unsqueeze(-1).expand(-1, -1, p.P),
        "A": t["decay"].view(-1, 1, 1).expand(-1, p.P, p.N),
        "B": t["b"],
        "C": t["c"],
        "D": t["d"].unsqueeze(-1).expand(-1, p.P),
        "z": t["z"],
        "dt_bias": t["dt_bias"].unsqueeze(-1).expand(-1, p.P),
        "dt_softplus": True,
    }
