"""Choosing a backend: by name, automatically, and with a reason whenever one is not taken."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mamba3_bench.bench import peers
from mamba3_bench.kernels import plans, registry
from mamba3_bench.kernels.bound import Stages
from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.errors import BackendMissing, BackendTaken, OptionError, UnsupportedError
from mamba3_bench.kernels.ops import decode, prefill
from mamba3_bench.kernels.problem import Problem

MakeProblem = Callable[..., Problem]
CPU = torch.device("cpu")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, str], str]]:
    """A registry of the torch and reference backends alone, to add to; put back afterwards."""
    kept = {key: path for key, path in registry.MODULES.items() if path.startswith("torch.")}
    loaded = {key: registry.get(*key) for key in kept}  # a module registers itself only once
    monkeypatch.setattr(registry, "MODULES", kept)
    monkeypatch.setattr(registry, "_added", {})
    monkeypatch.setattr(registry, "_registered", loaded)
    registry.unavailable.cache_clear()
    yield kept
    registry.unavailable.cache_clear()
    plans.forget()


def add(
    modules: dict[tuple[str, str], str],
    backend: str,
    reason: str | None,
    first: bool = True,
    op: Any = "prefill",
) -> list[Any]:
    """Register an op that notes its configs, refuses with a reason, and goes first or last.

    It writes where the tensors lie, as a kernel does, unseen by autograd.
    """
    seen: list[Any] = []

    @registry.implements(
        op, backend,
        supports=lambda problem, device: reason,
        configs=lambda problem, device: iter(["best", "second"]),
    )  # fmt: skip
    def run(call: Call, config: Any) -> None:
        seen.append(config)
        for _, tensor in call.final.items():
            tensor.data.fill_(3)
        call.y.fill_(3)

    others = dict(modules)
    modules.clear()
    entry = {(op, backend): "torch.prefill"}  # any module that can be imported
    modules.update(entry | others if first else others | entry)
    return seen


def test_an_unknown_backend_names_those_there_are(make_problem: MakeProblem, seed: int) -> None:
    """Both ops, each with its own list."""
    call = make_call(make_problem("prefill"), seed)
    with pytest.raises(BackendMissing, match="'cuda' is not available: not a backend of prefill"):
        prefill(call.inputs, call.params, backend="cuda")
    step = make_call(make_problem("decode"), seed)
    assert step.state is not None
    with pytest.raises(BackendMissing, match=r"there are .*torch, reference"):
        decode(step.inputs, step.params, step.state, backend="cuda")


def test_a_missing_dsl_is_a_reason(
    modules: dict[tuple[str, str], str], make_problem: MakeProblem, seed: int
) -> None:
    """Its backend stays listed, cannot be got, says why, and `auto` goes on to the next."""
    modules["prefill", "absent"] = "absent.prefill"
    reason = registry.unavailable("prefill", "absent")
    assert reason is not None
    assert "cannot import its DSL: ModuleNotFoundError" in reason
    assert "absent" in registry.backends("prefill")
    problem = make_problem("prefill")
    assert registry.refusal("prefill", "absent", problem, CPU) == reason
    with pytest.raises(BackendMissing, match="cannot import its DSL") as caught:
        registry.get("prefill", "absent")
    assert caught.value.reason == reason
    call = make_call(problem, seed)
    with pytest.raises(BackendMissing, match="cannot import its DSL"):
        prefill(call.inputs, call.params, backend="absent")
    assert registry.choose("prefill", "auto", problem, CPU).backend == "torch"


def test_a_module_that_registers_nothing_is_a_reason(
    modules: dict[tuple[str, str], str],
) -> None:
    """Imported without error, but no `implements` for what it is listed as."""
    modules["prefill", "empty"] = "problem"
    with pytest.raises(BackendMissing, match=r"kernels\.problem does not register it"):
        registry.get("prefill", "empty")


@pytest.mark.parametrize("error", [OSError("no libcuda"), AttributeError("cannot find symbol")])
def test_a_broken_dsl_is_a_reason(
    modules: dict[tuple[str, str], str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A DSL that raises something else while it loads does not end the run either."""
    modules["prefill", "broken"] = "broken.prefill"

    def fail(name: str) -> None:
        assert name == "mamba3_bench.kernels.broken.prefill"
        raise error

    monkeypatch.setattr(registry.importlib, "import_module", fail)
    reason = registry.unavailable("prefill", "broken")
    assert reason == f"cannot import its DSL: {type(error).__name__}: {error}"


@pytest.mark.parametrize("backend", ["torch", "triton", "mamba_ssm"])
@pytest.mark.parametrize("how", ["implements", "adapts", "add_module"])
def test_the_package_s_own_backends_stay(
    monkeypatch: pytest.MonkeyPatch, how: str, backend: str
) -> None:
    """Neither a kernel nor a rival of ours is replaced, loaded or not, by whatever function."""
    for known in ("_registered", "_added", "_rivals"):
        monkeypatch.setattr(registry, known, dict(getattr(registry, known)))
    peers.register()
    before = registry.module_name("decode", backend), registry._registered.get(("decode", backend))
    own = registry.get("decode", "torch")
    given: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "implements": ([], {"supports": own.supports}),
        "adapts": ([Stages(lambda *_: {}, print, print)], {"supports": own.supports}),
        "add_module": (["theirs"], {}),
    }
    more, named = given[how]
    with pytest.raises(BackendTaken, match="register yours by another name"):
        getattr(registry, how)("decode", backend, *more, **named)
    after = registry.module_name("decode", backend), registry._registered.get(("decode", backend))
    assert after == before


def test_a_backend_of_ours_may_be_registered_again(modules: dict[tuple[str, str], str]) -> None:
    """By its own module, as a reload does."""
    registry.get("decode", "torch")
    importlib.reload(importlib.import_module(f"{registry.__package__}.torch.decode"))
    assert registry.unavailable("decode", "torch") is None


def test_an_op_that_no_family_has_is_refused(modules: dict[tuple[str, str], str]) -> None:
    """Misspelt, it would be found nowhere."""
    supports = registry.get("decode", "torch").supports
    with pytest.raises(OptionError, match=r"op: expected one of prefill, .*, got 'decoed'"):
        registry.implements("decoed", "mine", supports=supports)  # type: ignore[arg-type]


def test_a_refused_problem_says_why(
    modules: dict[tuple[str, str], str], make_problem: MakeProblem, seed: int
) -> None:
    """By name it is an error; nothing runs."""
    seen = add(modules, "picky", "N = 8 is too small")
    call = make_call(make_problem("prefill"), seed)
    with pytest.raises(UnsupportedError, match=r"'picky' does not take .*: N = 8 is too small"):
        prefill(call.inputs, call.params, backend="picky")
    assert seen == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [("no \udc80", "no \\udc80"), ("", "refused without a reason"), (True, "True")],
)
def test_a_reason_can_be_written(
    modules: dict[tuple[str, str], str], make_problem: MakeProblem, said: Any, reason: str
) -> None:
    """Whatever `supports` says beside None is a refusal with a text that UTF-8 has."""
    add(modules, "odd", said)
    problem = make_problem("prefill")
    assert registry.refusal("prefill", "odd", problem, CPU) == reason
    with pytest.raises(UnsupportedError) as caught:
        registry.choose("prefill", "odd", problem, CPU)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("reason", "first", "chosen"),
    [(None, True, "new"), (None, False, "torch"), ("no", True, "torch")],
)
def test_auto_takes_the_first_that_supports(
    modules: dict[tuple[str, str], str],
    make_problem: MakeProblem,
    reason: str | None,
    first: bool,
    chosen: str,
) -> None:
    """In the order of the table, over those that refuse."""
    add(modules, "new", reason, first)
    assert registry.choose("prefill", "auto", make_problem("prefill"), CPU).backend == chosen


def test_auto_never_takes_the_reference(
    modules: dict[tuple[str, str], str], make_problem: MakeProblem, seed: int
) -> None:
    """Where all others refuse, the error lists each with its reason."""
    del modules["prefill", "torch"]
    add(modules, "picky", "N = 8 is too small")
    modules["prefill", "absent"] = "absent.prefill"
    call = make_call(make_problem("prefill"), seed)
    with pytest.raises(UnsupportedError) as caught:
        prefill(call.inputs, call.params)
    assert "picky: N = 8 is too small; absent: cannot import its DSL" in caught.value.reason
    assert "reference" not in caught.value.reason


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_gradients_come_from_who_has_them(
    modules: dict[tuple[str, str], str], make_problem: MakeProblem, seed: int, op: str
) -> None:
    """A kernel without them is refused by name and left by `auto`, which says so; without autograd
    the same tensors go to it."""
    add(modules, "fast", None, op=op)
    call = make_call(make_problem(op), seed)
    inputs = call.inputs.map(lambda _, t: t.clone().requires_grad_())

    def run(backend: str = "auto") -> torch.Tensor:
        given = {"options": call.problem.options, "backend": backend}
        if op == "prefill":
            return prefill(inputs, call.params, call.state, **given)[0]
        assert call.state is not None
        return decode(inputs, call.params, call.state.map(lambda _, t: t.clone()), **given)

    for _ in range(2):
        with torch.no_grad():
            assert bool((run() == 3).all())
        with pytest.raises(UnsupportedError, match=r"no gradients: call it under torch\.no_grad"):
            run("fast")
    with pytest.warns(UserWarning, match="'torch' for its gradients; .* it would take 'fast'"):
        y = run()
    y.sum().backward()
    assert inputs.x.grad is not None
    assert bool(inputs.x.grad.isfinite().all())


@pytest.mark.parametrize("backend", ["fast", "torch", "reference"])
def test_autograd_knows_that_a_step_changes_the_state(
    modules: dict[tuple[str, str], str], make_problem: MakeProblem, seed: int, backend: str
) -> None:
    """What was computed from the old state cannot be differentiated with the new one."""
    add(modules, "fast", None, op="decode")
    call = make_call(make_problem("decode"), seed)
    assert call.state is not None
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = (factor * call.state.h).sum()
    with torch.no_grad():
        decode(call.inputs, call.params, call.state, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_that_nobody_has(
    modules: dict[tuple[str, str], str], make_problem: MakeProblem, seed: int
) -> None:
    """The reason names who would have run it without."""
    add(modules, "fast", None)
    modules.pop(("prefill", "torch"))
    call = make_call(make_problem("prefill"), seed)
    inputs = call.inputs.map(lambda _, t: t.clone().requires_grad_())
    with pytest.raises(UnsupportedError, match="fast: it has no gradients"):
        prefill(inputs, call.params)


def test_the_first_config_is_the_default(
    modules: dict[tuple[str, str], str], make_problem: MakeProblem, seed: int
) -> None:
    """And one that is given goes through unchanged; the result is what the backend wrote."""
    seen = add(modules, "new", None)
    call = make_call(make_problem("prefill"), seed)
    y, _ = prefill(call.inputs, call.params)
    prefill(call.inputs, call.params, config="second")
    assert seen == ["best", "second"]
    assert bool((y == 3).all())


@pytest.mark.parametrize("op", ["prefill", "decode"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_and_reference_take_everything(
    make_problem: MakeProblem, op: Any, dtype: torch.dtype
) -> None:
    """Any problem has a truth, a yardstick, and a default without a GPU."""
    problem = make_problem(op, dtype=dtype, P=3, N=12, S=6, R=5, G=2)
    for backend in ("torch", "reference"):
        assert registry.refusal(op, backend, problem, CPU) is None
    assert registry.choose(op, "auto", problem, CPU).backend == "torch"
