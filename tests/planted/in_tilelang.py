"""The state update of steps.py under tilelang.autotune."""

import steps
import tilelang
import tilelang.language as T
from steps import POOL, ROWS, N

FEW = 4  # programs of the slow config


def program(programs, fault):
    """One block updates `per` rows."""
    per = -(-ROWS // programs)
    last = {"wrong_tail": ROWS - 16, "out_of_bounds": per * programs}.get(fault, ROWS)
    more = 1 if fault == "race" else 0  # the next block's first row, too
    keep = 0.0 if fault == "zeros" else 1.0
    state = fault != "skipped_state"
    clobber = fault == "clobbered_input"
    far = (1 << 40) if fault == "illegal_access" else 0
    hang = fault == "hang"

    @T.prim_func
    def step(
        pool: T.Tensor((POOL, N), "float32"),
        x: T.Tensor((ROWS, N), "float32"),
        a: T.Tensor((ROWS,), "float32"),
        y: T.Tensor((ROWS, N), "float32"),
    ):
        with T.Kernel(programs, threads=N) as i:
            t = T.get_thread_binding()
            for r in T.serial(per + more):
                row = i * per + r
                if row < last:
                    inner = T.min(row, ROWS - 1)
                    h = keep * (a[inner] * pool[row, t] + x[inner, t])
                    if state:
                        pool[row, t] = h
                    if row < ROWS:
                        y[row, t] = h
                        if clobber:
                            x[row, t] = 0.0
            if far:
                y[T.int64(far) + i, t] = 0.0
            if hang:
                while a[0] > -1.0:
                    T.sync_threads()

    return step


def tune(fault):
    """Let the tuner choose; returns what it chose, and what that gets wrong."""
    configs = [{"programs": FEW, "fault": "none"}, {"programs": steps.PROGRAMS, "fault": fault}]

    @tilelang.autotune(configs=configs, warmup=3, rep=20)
    @tilelang.jit(pass_configs={"tl.disable_safe_memory_legalize": True})
    def step(programs=FEW, fault="none"):
        return program(programs, fault)

    kernel = step()
    chosen = getattr(kernel, "config", None) or {}
    return chosen.get("fault", "not said"), steps.wrong(lambda made: kernel(*made.args()))
