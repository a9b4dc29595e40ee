"""Times that others published, to stand beside what a report measured at the same shape.

Source: arXiv 2603.15569, table 6: one decode step on an H100, batch 128, d_model 2048 (H = 64,
P = 64), milliseconds. The paper does not say what lies inside its timed region, which heads its
Gated DeltaNet has, or which dtypes beside the state's.
"""

from typing import Any

COLUMNS = (("float32", 64), ("float32", 128), ("bfloat16", 64), ("bfloat16", 128))  # state, N
MILLISECONDS: dict[tuple[str, int | None], tuple[float, float, float, float]] = {  # op, rank
    ("mamba2.decode", None): (0.295, 0.409, 0.127, 0.203),
    ("gdn.decode", None): (0.344, 0.423, 0.176, 0.257),
    ("decode", 1): (0.310, 0.399, 0.110, 0.156),
    ("decode", 4): (0.333, 0.431, 0.137, 0.179),
}
WHERE = {"B": 128, "H": 64, "P": 64}


def cited(problem: dict[str, Any]) -> float | None:
    """The published microseconds of a problem, by its record; None where there are none."""
    if any(problem.get(dim) != size for dim, size in WHERE.items()):
        return None
    row = MILLISECONDS.get((problem["op"], problem.get("R")))
    column = (problem.get("state_dtype"), problem.get("N"))
    return row[COLUMNS.index(column)] * 1e3 if row and column in COLUMNS else None
