"""Two tokens of a MIMO head with every option, in plain Python numbers, formula by formula."""

import math
import random

import pytest
import torch

from mamba3_bench.reference import mamba3

P, N, R, S = 2, 4, 2, 1

Vector = list[float]


def rms(v: Vector) -> Vector:
    """v / sqrt(mean(v^2) + 1e-5)."""
    size = math.sqrt(sum(u * u for u in v) / len(v) + 1e-5)
    return [u / size for u in v]


def turned(v: Vector, phi: float, pairing: str) -> Vector:
    """v with its first pair, (0, 1) or (0, N/2), turned by phi."""
    i, j = (0, 1) if pairing == "interleaved" else (0, N // 2)
    out = list(v)
    out[i] = v[i] * math.cos(phi) - v[j] * math.sin(phi)
    out[j] = v[i] * math.sin(phi) + v[j] * math.cos(phi)
    return out


def decay_rate(a: float, decay: str) -> float:
    """-A of a raw decay."""
    if decay == "softplus":
        return max(math.log1p(math.exp(a)), 1e-4)
    return max(1 + a if a >= 0 else 1 / (1 - a), 1e-4)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize("decay", ["heavy_tail", "softplus"])
@pytest.mark.parametrize("a", [[0.7, -0.4], [2.0, -20_000.0]])
def test_two_tokens_by_hand(
    seed: int, pairing: mamba3.Pairing, decay: mamba3.Decay, a: Vector
) -> None:
    """Every activation, the three-term update, skip, norm, gate and the sum over ranks."""
    rng = random.Random(seed)

    def draw(*shape: int) -> list:
        if not shape:
            return rng.gauss(0, 1)
        return [draw(*shape[1:]) for _ in range(shape[0])]

    x, z, b, c = draw(2, P), draw(2, P), draw(2, R, N), draw(2, R, N)
    dt, lam, theta = draw(2), draw(2), draw(2)
    dt_bias, d, b_norm, c_norm, out_norm = draw(), draw(), draw(N), draw(N), draw(P)
    b_bias, c_bias, up, gate, down = draw(R, N), draw(R, N), draw(R, P), draw(R, P), draw(R, P)

    def tensor(v: list, *shape: int) -> torch.Tensor:
        return torch.tensor(v, dtype=torch.float64).view(*shape)

    y, final = mamba3.prefill(
        tensor(x, 1, 2, 1, P), tensor(b, 1, 2, R, 1, N), tensor(c, 1, 2, R, 1, N),
        tensor(dt, 1, 2, 1), tensor(a, 1, 2, 1), tensor(lam, 1, 2, 1), tensor(theta, 1, 2, 1),
        tensor(z, 1, 2, 1, P), dt_bias=tensor([dt_bias], 1), d=tensor([d], 1),
        b_norm=tensor(b_norm, N), c_norm=tensor(c_norm, N), out_norm=tensor(out_norm, 1, P),
        b_bias=tensor(b_bias, 1, R, N), c_bias=tensor(c_bias, 1, R, N),
        mimo_x=tensor(up, 1, R, P), mimo_z=tensor(gate, 1, R, P), mimo_o=tensor(down, 1, R, P),
        pairing=pairing, decay=decay,
    )  # fmt: skip

    phi, h, outputs = 0.0, [[0.0] * N for _ in range(P)], []
    k_before, x_before = [[0.0] * N for _ in range(R)], [[0.0] * P for _ in range(R)]
    for t in range(2):
        D = math.log1p(math.exp(dt[t] + dt_bias))
        mix = 1 / (1 + math.exp(-lam[t]))
        alpha = math.exp(-decay_rate(a[t], decay) * D)
        beta, gamma = (1 - mix) * D * alpha, mix * D
        phi += D * math.pi * math.tanh(theta[t])
        k, q = (
            [
                turned([u * w + e for u, w, e in zip(rms(v), norm, bias[r], strict=True)], phi,
                       pairing)
                for r, v in enumerate(raw[t])
            ]
            for raw, norm, bias in ((b, b_norm, b_bias), (c, c_norm, c_bias))
        )  # fmt: skip
        x_r = [[x[t][p] * up[r][p] for p in range(P)] for r in range(R)]
        for p in range(P):
            for n in range(N):
                h[p][n] *= alpha
                h[p][n] += beta * sum(x_before[r][p] * k_before[r][n] for r in range(R))
                h[p][n] += gamma * sum(x_r[r][p] * k[r][n] for r in range(R))
        out = [0.0] * P
        for r in range(R):
            y_r = [sum(h[p][n] * q[r][n] for n in range(N)) + d * x_r[r][p] for p in range(P)]
            for p, value in enumerate(rms(y_r)):
                g = z[t][p] * gate[r][p]
                out[p] += down[r][p] * value * out_norm[p] * g / (1 + math.exp(-g))
        outputs.append(out)
        k_before, x_before = k, x_r

    rounding = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(y, tensor(outputs, 1, 2, 1, P), **rounding)
    torch.testing.assert_close(final.h, tensor(h, 1, 1, P, N), **rounding)
    torch.testing.assert_close(final.k, tensor(k_before, 1, R, 1, N), **rounding)
    torch.testing.assert_close(final.x, tensor(x[1], 1, 1, P), **rounding)
    assert float(final.phi) == pytest.approx(phi % (2 * math.pi), abs=1e-13)


@pytest.mark.parametrize("u", [-700.0, -30.0, 0.0, 19.0, 21.0, 25.0, 39.0, 41.0, 700.0])
def test_softplus_keeps_float64(u: float) -> None:
    """D and -A are log(1 + e^u) to float64 rounding for any u, also where that is nearly u."""
    one = torch.full((1, 1, 1), u)
    empty = torch.zeros(1, 1, 1, 4)
    tokens = mamba3.activate(
        empty, empty.unsqueeze(3), empty.unsqueeze(3), dt=one, a=one, lam=one,
        theta=torch.zeros(1, 1, 1), z=None, dt_bias=None, b_norm=None, c_norm=None, b_bias=None,
        c_bias=None, step="softplus", decay="softplus", norm="rms",
    )  # fmt: skip
    expected = max(u, 0.0) + math.log1p(math.exp(-abs(u)))
    assert float(tokens.step) == pytest.approx(expected, rel=1e-15, abs=0)
    rate = max(expected, 1e-4)
    assert float(tokens.log_decay) == pytest.approx(-rate * expected, rel=1e-15, abs=0)
