"""Named grids, and which kernels meet on them. Written as on a command line; imports nothing heavy.

A match has axes that all its contenders share: at each of their points one job is made, in which
all contenders are timed interleaved, so their ratios are fair. A contender may have axes of its
own, or scale a shared one: `*2` is twice the shared value.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .axes import MOST, AxisError

Values = dict[str, tuple[Any, ...]]  # by axis
ORDER = (  # of the points of a grid: neighbours share compiled kernels
    *("dtype", "state_dtype", "state", "rank", "heads", "head_size", "groups", "angles", "pairing"),
    *("decay", "step", "norm", "initial_state", "batch", "length"),
)


@dataclass(frozen=True, slots=True)
class Contender:
    """Some backends of one op; none named means all of ours that load, `ours` all but torch."""

    op: str
    backends: tuple[str, ...] = ()
    axes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """Contenders on a shared grid."""

    axes: Mapping[str, str]
    contenders: tuple[Contender, ...]


@dataclass(frozen=True, slots=True)
class Preset:
    """What a name stands for."""

    text: str
    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """A contender at one point of its match; `typed` are the names of axes that were typed."""

    op: str
    backends: tuple[str, ...]
    axes: Values
    typed: frozenset[str] = frozenset()


OFFICIAL = ("mamba_ssm", "mamba_ssm_kernel")
# A Transformer of the same width: 32 query heads and 8 heads of keys and values, each of 64.
TRANSFORMER = {"heads": "32", "groups": "8", "head_size": "64"}


def decodes(matched: Mapping[str, str], **axes: str) -> Match:
    """Decode steps of every recurrent family; `matched` gives GDN as many bytes of state."""
    return Match(
        {"heads": "64", "head_size": "64", **axes},
        (
            Contender("decode", ("ours", *OFFICIAL), {"rank": "1,4"}),
            Contender("mamba2.decode", ("mamba_ssm", "flashinfer")),
            Contender("gdn.decode", ("fla", "flashinfer")),
            Contender("gdn.decode", ("fla", "flashinfer"), matched),
        ),
    )


def prefills(**axes: str) -> Match:
    """Prefills of every family at N = 128."""
    return Match(
        {"heads": "64", "head_size": "64", "state": "128", **axes},
        (
            Contender("prefill", ("ours", *OFFICIAL), {"rank": "1,4"}),
            Contender("mamba2.prefill", ("mamba_ssm",)),
            Contender("gdn.prefill", ("fla", "flashinfer")),
            Contender("gdn.prefill", ("fla", "flashinfer"), WIDE[128]),
            Contender("attention.prefill", ("sdpa",), TRANSFORMER),
        ),
    )


# Gated DeltaNet's own heads of 128 x 128, as many as hold the state of 64 heads of 64 x N.
WIDE = {
    64: {"heads": "16", "head_size": "128", "state": "128"},
    128: {"heads": "32", "head_size": "128", "state": "128"},
}

PRESETS: dict[str, Preset] = {
    "h100-prefill": Preset(
        "our SISO prefills, lengths 512 to 16384",
        (
            Match(
                {
                    "state": "64,128",
                    "batch": "1,8",
                    "length": "512:16384:*2",
                    "dtype": "bf16,fp32",
                },
                (Contender("prefill"),),
            ),
        ),
    ),
    "h100-mimo": Preset(
        "our MIMO prefills beside the official ones, lengths 1 to 16384",
        (
            Match(
                {
                    "state": "64,128",
                    "rank": "2,4",
                    "batch": "1,8,32",
                    "length": "1,100,1000,2048,16384",
                },
                (Contender("prefill", ("tilelang", *OFFICIAL)),),
            ),
        ),
    ),
    "h100-decode": Preset(
        "our decode steps beside the official ones, ranks 1 to 8, batches 1 to 128",
        (
            Match(
                {
                    "state": "64,128",
                    "rank": "1,2,4,8",
                    "batch": "1,8,32,128",
                    "state_dtype": "fp32,bf16",
                },
                (Contender("decode", ("ours", *OFFICIAL)),),
            ),
        ),
    ),
    "small": Preset(
        "tiny prefills, for a machine without a GPU",
        (
            Match(
                {
                    "heads": "2",
                    "head_size": "32",
                    "state": "32",
                    "batch": "1,2",
                    "length": "64,131",
                    "dtype": "bf16,fp16,fp32",
                },
                (Contender("prefill"),),
            ),
        ),
    ),
    "paper": Preset(
        "the shapes of the paper's tables: all families, decode at batch 128, prefill to 16384",
        (
            decodes(WIDE[64], state="64", batch="128", state_dtype="fp32,bf16"),
            decodes(WIDE[128], state="128", batch="128", state_dtype="fp32,bf16"),
            prefills(batch="1", length="512:16384:*2"),
        ),
    ),
    "serving": Preset(
        "batches 1 to 256, short and long prompts: all families, attention with its cache",
        (
            Match(
                {"heads": "64", "head_size": "64", "state": "128", "batch": "1:256:*4"},
                (
                    *decodes(WIDE[128]).contenders,
                    Contender("attention.decode", ("sdpa",), TRANSFORMER | {"length": "1024,8192"}),
                ),
            ),
            prefills(batch="1,8,32", length="128"),
            prefills(batch="1,8", length="4096"),
        ),
    ),
    "state-size": Preset(
        "half the state: Mamba-3 at N against Mamba-2 at 2 N, decode and prefill",
        (
            Match(
                {"state": "32,64,128", "batch": "1,128"},
                (
                    Contender("decode", ("ours", *OFFICIAL), {"rank": "1,4"}),
                    Contender("mamba2.decode", ("mamba_ssm", "flashinfer"), {"state": "*2"}),
                ),
            ),
            Match(
                {"state": "32,64,128", "batch": "8", "length": "2048"},
                (
                    Contender("prefill", ("ours", *OFFICIAL), {"rank": "1,4"}),
                    Contender("mamba2.prefill", ("mamba_ssm",), {"state": "*2"}),
                ),
            ),
        ),
    ),
}


def sides(
    match: Match, typed: Mapping[str, str], read: Callable[[str, str], tuple[Any, ...]]
) -> Iterator[list[Side]]:
    """The contenders at each point of a match; what is typed wins over the match's shared axes.

    read: the values of an axis, from its name and text. Raises AxisError for too many points,
    before the first is made.
    """
    shared = {name: read(name, text) for name, text in {**match.axes, **typed}.items()}
    names = [name for name in ORDER if name in shared]
    points = math.prod(len(shared[name]) for name in names)
    if points > MOST:
        several = [name.replace("_", "-") for name in names if len(shared[name]) > 1]
        expected = f"grids of at most {MOST} points"
        raise AxisError(", --".join(several), expected, str(points), "take fewer values")
    rest = {name: values for name, values in shared.items() if name not in ORDER}
    for point in itertools.product(*(shared[name] for name in names)):
        at: Values = rest | {name: (value,) for name, value in zip(names, point, strict=True)}
        found = []
        for contender in match.contenders:
            own = {
                name: (at[name][0] * int(text[1:]),) if text[0] == "*" else read(name, text)
                for name, text in contender.axes.items()
            }
            found.append(Side(contender.op, contender.backends, at | own, frozenset(typed)))
        yield found
