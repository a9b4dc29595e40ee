"""Stand-ins for other people's libraries: the documented function, computed by PyTorch on a CPU.

Each checks shapes and layouts as the real one does, and returns what it returns, in its dtypes.
"""

import math
import sys
from types import ModuleType

import torch
from torch.nn.functional import silu

from mamba3_bench.reference import mamba3


def rmsnorm_fn(x, weight, bias, eps):
    """layernorm_gated: normalise over the last dim, in float32."""
    assert bias is None
    wide = x.float()
    wide = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.float()
    return wide.to(x.dtype)


def mamba3_prefill(Q, K, V, ADT, DT, Trap, Angles, D, Z, pairing, state=None, **params):
    """What SISO and MIMO share: the recurrence on activated inputs."""
    for tensor in (ADT, DT, Trap):
        assert tensor.shape == (V.shape[0], V.shape[2], V.shape[1]), "expected (B, H, L)"
    y, final = mamba3.prefill(
        V, K, Q, DT.transpose(1, 2), ADT.transpose(1, 2), Trap.transpose(1, 2), Angles, Z,
        d=D, state=state, step="activated", decay="log_decay", norm="normalised", pairing=pairing,
        **params,
    )  # fmt: skip
    return y.to(V.dtype), final


def mamba3_siso_combined(
    Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles, D=None, Z=None, Input_States=None,
    chunk_size=64, return_final_states=False, cu_seqlens=None,
):  # fmt: skip
    """Rotates neighbours; returns the last key without a dim of ranks."""
    assert return_final_states
    assert Q.shape == K.shape
    assert Q_bias.shape == (V.shape[2], Q.shape[3])
    assert Angles.shape[:3] == V.shape[:3]
    state = None
    if Input_States is not None:
        phi, h, k, x = Input_States
        state = mamba3.State(phi, h, k.unsqueeze(1), x)
    y, final = mamba3_prefill(
        Q.unsqueeze(2), K.unsqueeze(2), V, ADT, DT, Trap, Angles, D, Z, "interleaved", state,
        b_bias=K_bias.unsqueeze(1), c_bias=Q_bias.unsqueeze(1),
    )  # fmt: skip
    return y, final.phi.to(V.dtype), final.h.float(), final.k[:, 0].float(), V[:, -1]


def mamba3_mimo(
    Q, K, V, ADT, DT, Trap, Q_bias, K_bias, MIMO_V, MIMO_Z, MIMO_Out, Angles, D, Z,
    chunk_size, rotary_dim_divisor, dtype, return_state=False,
):  # fmt: skip
    """Rotates halves; takes no initial state."""
    assert return_state
    assert Angles.dtype == torch.float32
    assert Q.shape[-1] == rotary_dim_divisor * Angles.shape[-1]
    assert 8 <= chunk_size <= 64 // Q.shape[2]
    y, final = mamba3_prefill(
        Q, K, V, ADT, DT, Trap, Angles, D, Z, "half",
        b_bias=K_bias, c_bias=Q_bias, mimo_x=MIMO_V, mimo_z=MIMO_Z, mimo_o=MIMO_Out,
    )  # fmt: skip
    return y, final.phi.float(), final.h.float(), final.k.to(dtype), V[:, -1].contiguous()


def apply_rotary_qk_inference_fwd(
    q, k, angle_state, angle_proj, dt, bias_q, bias_k, inplace, conjugate, rotate_pairwise
):
    """Adds biases, moves the angles on without taking whole turns off, rotates q and k."""
    assert not inplace
    assert not conjugate
    assert q.shape == k.shape
    assert bias_q.shape == bias_k.shape == q.shape[1:]
    phi = angle_state + math.pi * angle_proj.float().tanh() * dt.unsqueeze(-1)
    pairing = "interleaved" if rotate_pairwise else "half"
    q, k = (
        mamba3.rotate(v.float() + bias, phi.unsqueeze(1), pairing).to(v.dtype)
        for v, bias in ((q, bias_q), (k, bias_k))
    )
    return q, k, phi


def mamba3_step_fn(
    state, Bstate, Xstate, A, B, C, D, x, dt, trap, xproj, outproj=None, state_out=None, out=None,
    z=None, zproj=None, tile_D=64, num_warps=2,
):  # fmt: skip
    """One step of the state, in place; ranks come first in the projections."""
    assert state_out is None
    assert state.shape[2] % tile_D == 0
    assert Bstate.dtype == B.dtype == C.dtype
    assert xproj.shape == (B.shape[1], *x.shape[1:])
    trap, alpha = trap.float(), (A * dt).exp()
    new = torch.einsum("bhp,rhp,brhn->bhpn", x.float(), xproj.float(), B.float())
    old = torch.einsum("bhp,rhp,brhn->bhpn", Xstate.float(), xproj.float(), Bstate.float())
    h = alpha[..., None, None] * state.float()
    h += ((1 - trap) * dt * alpha)[..., None, None] * old + (trap * dt)[..., None, None] * new
    y = torch.einsum("bhpn,brhn->brhp", h, C.float())
    y = y + D[:, None] * x.float().unsqueeze(1) * xproj.float()
    y = y * silu(z.float().unsqueeze(1) * zproj.float()) * outproj.float()
    state.copy_(h)
    out.copy_(y.sum(1))


FUNCTIONS = {
    "mamba_ssm.ops.triton.layernorm_gated": [rmsnorm_fn],
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined": [mamba3_siso_combined],
    "mamba_ssm.ops.triton.mamba3.mamba3_mimo_rotary_step": [apply_rotary_qk_inference_fwd],
    "mamba_ssm.ops.tilelang.mamba3.mamba3_mimo": [mamba3_mimo],
    "mamba_ssm.ops.cute.mamba3.mamba3_step_fn": [mamba3_step_fn],
}


def modules():
    """The stand-ins as modules by name, their packages included."""
    found = {}
    for name, functions in FUNCTIONS.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            path = ".".join(parts[:length])
            found.setdefault(path, ModuleType(path)).__path__ = []
        for function in functions:
            setattr(found[name], function.__name__, function)
    return found


def install(monkeypatch):
    """Put the stand-ins where the adapters import from."""
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
