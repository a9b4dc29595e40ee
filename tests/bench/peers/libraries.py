"""Stand-ins for other people's libraries: the documented function, computed by PyTorch on a CPU.

Each checks shapes and layouts as the real one does, and returns what it returns, in its dtypes.
"""

import itertools
import math
import sys
from types import ModuleType

import torch
from torch.nn.functional import silu

from mamba3_bench.reference import gated_deltanet, mamba2, mamba3


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


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None,
    dt_softplus=False, return_final_states=False,
):  # fmt: skip
    """Mamba-2 over whole sequences."""
    assert dt_softplus
    assert return_final_states
    assert dt.shape == x.shape[:3]
    y, h = mamba2.prefill(x, B, C, dt, A, z, dt_bias=dt_bias, d=D, h=initial_states)
    return y.to(x.dtype), h.float()


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """Mamba-2's step, in place; scalars of a head must be expanded, or it would be slow."""
    assert dt_softplus
    assert dt.shape == x.shape
    assert A.shape == state.shape[1:]
    assert D.shape == dt_bias.shape == x.shape[1:]
    assert (dt.stride(-1), A.stride(-1), A.stride(-2), dt_bias.stride(-1)) == (0, 0, 0, 0)
    y, h = mamba2.prefill(
        x[:, None], B[:, None], C[:, None], dt[:, None, :, 0], A[:, 0, 0], z[:, None],
        dt_bias=dt_bias[:, 0], d=D[:, 0], h=state,
    )  # fmt: skip
    state.copy_(h)
    return y[:, 0].to(x.dtype)


def flashinfer_step(state, x, dt, A, B, C, D=None, dt_bias=None, **more):
    """The same by FlashInfer, which wants one dtype of a head's parameters."""
    assert D.dtype == dt_bias.dtype == dt.dtype
    return selective_state_update(state, x, dt, A, B, C, D, dt_bias=dt_bias, **more)


def gated_delta_rule(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False, use_beta_sigmoid_in_kernel=False,
    A_log=None, dt_bias=None,
):  # fmt: skip
    """Gated DeltaNet by flash-linear-attention; its state is (K, V)."""
    assert output_final_state
    assert use_qk_l2norm_in_kernel
    assert use_gate_in_kernel
    assert use_beta_sigmoid_in_kernel
    h = None
    if initial_state is not None:
        assert initial_state.shape == (*v.shape[:1], v.shape[2], k.shape[3], v.shape[3])
        h = initial_state.mT
    y, h = gated_deltanet.prefill(q, k, v, g, beta, decay=-A_log.exp(), dt_bias=dt_bias, h=h)
    return y.to(v.dtype), h.mT.float()


def chunk_gated_delta_rule(**arguments):
    """Whole sequences."""
    return gated_delta_rule(**arguments)


def fused_recurrent_gated_delta_rule(**arguments):
    """One token here."""
    assert arguments["q"].shape[1] == 1
    return gated_delta_rule(**arguments)


def flashinfer_chunk(q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens):
    """Gated DeltaNet by FlashInfer: packed, activated, its state (V, K)."""
    assert output_final_state
    assert g.dtype == beta.dtype == torch.float32
    ends = cu_seqlens.tolist()
    outs, finals = [], []
    for row, (start, stop) in enumerate(itertools.pairwise(ends)):
        h = torch.zeros(v.shape[1], v.shape[2], k.shape[2]) if initial_state is None else None
        h = (initial_state[row] if h is None else h).double()
        per_group = v.shape[1] // k.shape[1]
        for t in range(start, stop):
            key, query = (x[t].double().repeat_interleave(per_group, 0) for x in (k, q))
            h = g[t].double()[:, None, None] * h
            missing = v[t].double() - torch.einsum("hpn,hn->hp", h, key)
            h = h + torch.einsum("h,hp,hn->hpn", beta[t].double(), missing, key)
            outs.append(torch.einsum("hpn,hn->hp", h, query * scale))
        finals.append(h)
    return torch.stack(outs).to(v.dtype), torch.stack(finals).float()


def gated_delta_rule_decode_pretranspose(
    q, k, v, state, A_log, a, dt_bias, b, scale=None, use_qk_l2norm=True
):
    """One step, the state (V, K) in place."""
    assert use_qk_l2norm
    y, h = gated_deltanet.prefill(q, k, v, a, b, decay=-A_log.exp(), dt_bias=dt_bias, h=state)
    state.copy_(h)
    return y.to(v.dtype), state


FUNCTIONS = {
    "mamba_ssm.ops.triton.layernorm_gated": {"rmsnorm_fn": rmsnorm_fn},
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined": {
        "mamba3_siso_combined": mamba3_siso_combined
    },
    "mamba_ssm.ops.triton.mamba3.mamba3_mimo_rotary_step": {
        "apply_rotary_qk_inference_fwd": apply_rotary_qk_inference_fwd
    },
    "mamba_ssm.ops.tilelang.mamba3.mamba3_mimo": {"mamba3_mimo": mamba3_mimo},
    "mamba_ssm.ops.cute.mamba3.mamba3_step_fn": {"mamba3_step_fn": mamba3_step_fn},
    "mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": mamba_chunk_scan_combined},
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": selective_state_update
    },
    "fla.ops.gated_delta_rule": {
        "chunk_gated_delta_rule": chunk_gated_delta_rule,
        "fused_recurrent_gated_delta_rule": fused_recurrent_gated_delta_rule,
    },
    "flashinfer.mamba": {"selective_state_update": flashinfer_step},
    "flashinfer.gdn_prefill": {"chunk_gated_delta_rule": flashinfer_chunk},
    "flashinfer.gdn_decode": {
        "gated_delta_rule_decode_pretranspose": gated_delta_rule_decode_pretranspose
    },
}


def modules():
    """The stand-ins as modules by name, their packages included."""
    found = {}
    for name, functions in FUNCTIONS.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            path = ".".join(parts[:length])
            found.setdefault(path, ModuleType(path)).__path__ = []
        vars(found[name]).update(functions)
    return found


def install(monkeypatch):
    """Put the stand-ins where the adapters import from."""
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
