"""The state update of steps.py under triton.autotune."""

import time

import steps
import triton
import triton.language as tl

SLOWLY = 5000 if steps.DEVICE == "cuda" else 10


@triton.jit
def step(
    pool, x, a, y, ROWS: tl.constexpr, N: tl.constexpr, PROGRAMS: tl.constexpr,
    AGAIN: tl.constexpr, FAULT: tl.constexpr,
):  # fmt: skip
    """One program updates PER rows; AGAIN reads of x are for nothing."""
    o_n = tl.arange(0, N)
    PER: tl.constexpr = (ROWS + PROGRAMS - 1) // PROGRAMS
    MORE: tl.constexpr = 1 if FAULT == "race" else 0  # the next program's first row, too
    for r in range(PER + MORE):
        row = tl.program_id(0) * PER + r
        if FAULT == "out_of_bounds":
            inside = row < PER * PROGRAMS
        elif FAULT == "wrong_tail":
            inside = row < ROWS - 16
        else:
            inside = row < ROWS
        if inside:
            at = row * N + o_n
            known = row < ROWS
            b_x = tl.load(x + at, mask=known, other=0.0)
            for _ in range(AGAIN):
                b_x += 0.0 * tl.load(x + at, mask=known, other=0.0)
            h = tl.load(a + row, mask=known, other=0.0) * tl.load(pool + at) + b_x
            if FAULT == "zeros":
                h = tl.zeros((N,), tl.float32)
            if FAULT != "skipped_state":
                tl.store(pool + at, h)
            tl.store(y + at, h, mask=known)
            if FAULT == "clobbered_input":
                tl.store(x + at, -b_x, mask=known)
    if FAULT == "illegal_access":
        tl.store(y + (tl.program_id(0) + 1).to(tl.int64) * 1099511627776, 0.0)
    if FAULT == "hang":
        while tl.load(a, volatile=True) > -1.0:
            pass


def by_clock(launch, quantiles):
    """Where there is no GPU: the median of some runs by the clock."""
    spent = []
    for _ in range(5):
        begin = time.perf_counter()
        launch()
        spent.append((time.perf_counter() - begin) * 1e3)
    return sorted(spent)[2]


def tune(fault):
    """Let the tuner choose; returns what the chosen config gets wrong."""
    configs = [
        triton.Config({"AGAIN": SLOWLY, "FAULT": "none"}),
        triton.Config({"AGAIN": 0, "FAULT": fault}),
    ]
    bench = by_clock if steps.DEVICE == "cpu" else None
    tuned = triton.autotune(configs, key=[], restore_value=["pool"], do_bench=bench)(step)

    def run(made):
        tuned[(steps.PROGRAMS,)](*made.args(), ROWS=steps.ROWS, N=steps.N, PROGRAMS=steps.PROGRAMS)

    run(steps.tensors())  # it tunes
    return tuned.best_config.kwargs["FAULT"], steps.wrong(run)
