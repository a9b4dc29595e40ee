"""Which implementation of which op exists, which take a problem, and why the others do not.

An implementation is one file that calls `@implements(op, backend, ...)` on a function of (call,
config).
Its module is imported when it is first looked up, so a missing DSL costs a reason, not an
ImportError.
To add one: write the file and add its line to `MODULES`.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch

from . import lookup, plans
from .bound import Bound, Stages, direct
from .errors import BackendMissing, BackendTaken, OptionError, UnsupportedError, printable
from .family import FAMILIES, Problem
from .plans import Launch
from .problem import OpName

Config = Any  # a frozen dataclass of the implementation's own
Call = Any  # of the op's own family, as its problem is
Run = Callable[[Call, Config], None]
Supports = Callable[[Any, torch.device], str | None]
Configs = Callable[[Any, torch.device], Iterable[Config]]
Space = Callable[[Any, torch.device], Mapping[str, Config]]

COMPILE_ONLY = torch.device("meta")  # asked of `supports`: what can be compiled for an H100
H100_SMS = 132
DEFAULT = "default"  # the name of the hand-picked config among candidates
NO_GRADIENTS = "it has no gradients: call it under torch.no_grad(), or take backend='torch'"

# (op, backend) -> module under kernels/. The order is the order of preference of backend="auto".
MODULES: dict[tuple[OpName, str], str] = {
    ("prefill", "tilelang"): "tilelang.prefill",
    ("prefill", "triton"): "triton.prefill",
    ("prefill", "torch"): "torch.prefill",
    ("prefill", "reference"): "torch.reference",
    ("decode", "cute"): "cute.decode",
    ("decode", "triton"): "triton.decode",
    ("decode", "torch"): "torch.decode",
    ("decode", "reference"): "torch.reference",
    ("mamba2.prefill", "torch"): "torch.mamba2",
    ("mamba2.prefill", "reference"): "families.mamba2",
    ("mamba2.decode", "torch"): "torch.mamba2",
    ("mamba2.decode", "reference"): "families.mamba2",
    ("gdn.prefill", "torch"): "torch.gated_deltanet",
    ("gdn.prefill", "reference"): "families.gated_deltanet",
    ("gdn.decode", "torch"): "torch.gated_deltanet",
    ("gdn.decode", "reference"): "families.gated_deltanet",
    ("attention.prefill", "torch"): "torch.attention",
    ("attention.prefill", "reference"): "families.attention",
    ("attention.decode", "torch"): "torch.attention",
    ("attention.decode", "reference"): "families.attention",
}


@dataclass(frozen=True, slots=True)
class Resources:
    """What the compiler says of one kernel for one GPU architecture."""

    kernel: str
    registers: int  # per thread
    spills: int  # bytes per thread
    shared: int  # bytes per block
    threads: int  # per block


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an op."""

    op: OpName
    backend: str
    run: Run
    supports: Supports
    configs: Configs
    resources: Callable[[Any, Config], list[Resources]] | None = (
        None  # compile for sm_90a, no GPU needed
    )
    deterministic: bool = True
    rival: bool = False  # other people's kernel: may be `inaccurate` and still be timed
    stages: Stages | None = None  # None: `run` reads and writes the call's own buffers
    forget: Callable[[], None] = lambda: None  # what it chose by itself for other problems
    launcher: Callable[[Call, Config], Launch] | None = None  # None: nothing to prepare
    space: Space | None = None  # None: `configs` is all there is to try
    gradients: bool = False  # its results can be differentiated, by autograd

    def ready(self, call: Call, config: Config) -> Launch:
        """`run` for a call and for all that differ from it in addresses and values alone."""
        if self.launcher is not None:
            return self.launcher(call, config)
        return lambda call: self.run(call, config)

    def default(self, problem: Problem, device: torch.device) -> Config:
        """The first, hand-picked config for a problem on a device."""
        return next(iter(self.configs(problem, device)))

    def candidates(self, problem: Problem, device: torch.device) -> dict[str, Config]:
        """Every config that tuning tries, the default first.

        A name means the same rule in every shape, for instance how many blocks an SM is to get,
        where the config holds what follows from it, for instance tokens of a segment.
        """
        if self.space is not None:
            found = dict(self.space(problem, device))
        else:
            found = {config_name(config): config for config in self.configs(problem, device)}
        return {DEFAULT: self.default(problem, device)} | found

    def chosen(self, problem: Problem, device: torch.device) -> Config:
        """The config that runs unless one is named: the tuned winner, else the default."""
        return self.choice(problem, lookup.gpu_of(device), device)[0]

    def choice(
        self, problem: Problem, gpu: str | None, device: torch.device
    ) -> tuple[Config, lookup.Found]:
        """The config for a problem on a GPU of some name, and where it comes from."""
        default = self.default(problem, device)
        found = lookup.find(self.op, self.backend, module_name(self.op, self.backend), problem, gpu)
        if found.config is not None:
            try:
                return type(default)(**found.config), found
            except TypeError as error:
                raise OptionError(
                    f"tuned config of {self.backend} {self.op} for {gpu}",
                    "values of its Config", f"{found.config} ({error})", "tune again",
                ) from error  # fmt: skip
        if found.name is not None:
            candidates = self.candidates(problem, device)
            if found.name in candidates:
                return candidates[found.name], found
            why = f"{found.why}, and has no {found.name!r} here"
            found = replace(found, how="default", name=None, why=why)
        return default, found

    def bind(self, call: Call, config: Config) -> Bound:
        """Prepare a call for launches, of which each does the whole work again."""
        if self.stages is not None:
            return Bound(call, config, self.stages)
        launch = self.ready(call, config)
        return Bound(call, config, direct(lambda call, config: launch(call)))


_registered: dict[tuple[str, str], Implementation] = {}
_added: dict[tuple[OpName, str], str] = {}  # (op, backend) -> full module name
_rivals: dict[tuple[OpName, str], str] = {}  # other people's kernels -> how to install them

# Backends whose kernels a CPU can run, slowly, to check them: the variable that must be set to 1
# before the DSL is imported. Such a run says nothing about time.
INTERPRETERS = {"triton": "TRITON_INTERPRET"}

# Backends whose DSL keeps compiled kernels on disk, where another process finds them.
KEPT_ON_DISK = ("triton", "tilelang", "cute")


def add_module(
    op: OpName, backend: str, module: str, *, rival: bool = False, install: str = ""
) -> None:
    """Make a backend outside this package known by the full name of its module, not imported yet.

    A module that is imported anyway need not be added: `implements` makes its backend known.
    rival: other people's kernel, which `auto` never picks; install: how to get its library.
    Raises OptionError for an op that no family has, BackendTaken as `implements` does.
    """
    _claim(op, backend, module)
    _added[op, backend] = module
    if rival:
        _rivals.setdefault((op, backend), install)
    unavailable.cache_clear()
    plans.forget()


def _claim(op: str, backend: str, module: str) -> None:
    """Raise unless a module may register a backend; plugins may replace each other's."""
    if op not in FAMILIES:
        remedy = "an op's family comes first: kernels/family.py"
        raise OptionError("op", f"one of {', '.join(FAMILIES)}", repr(op), remedy)
    owner = module_name(op, backend)
    own = f"{__package__.partition('.')[0]}."
    if owner not in (None, module) and any(str(one).startswith(own) for one in (owner, module)):
        raise BackendTaken(op, backend, str(owner))


def is_rival(op: OpName, backend: str) -> bool:
    """Whether a backend is other people's kernel; answered without importing it."""
    return (op, backend) in _rivals


def implements(
    op: OpName,
    backend: str,
    *,
    supports: Supports,
    configs: Configs = lambda problem, device: (None,),
    resources: Callable[[Any, Config], list[Resources]] | None = None,
    deterministic: bool = True,
    rival: bool = False,
    launcher: Callable[[Call, Config], Launch] | None = None,
    space: Space | None = None,
    gradients: bool = False,
) -> Callable[[Run], Run]:
    """Register a function of (call, config) as the implementation of an op by a backend.

    supports: why a problem is refused on a device, or None; on COMPILE_ONLY, why it cannot even be
    compiled. configs: legal configurations, best guess first.
    resources: registers, spills and shared memory of a config, compiled for sm_90a without a GPU.
    deterministic: whether two runs on the same inputs must agree bit for bit.
    rival: whether this is other people's kernel, which may be `inaccurate` and still be timed.
    launcher: does once what calls that differ in addresses and values alone have in common, and
    returns a function of such calls.
    space: what tuning tries, by name (`Implementation.candidates`); by default the configs.
    gradients: whether autograd can differentiate what it writes.
    Raises OptionError for an op that no family has, BackendTaken if another module has the backend
    and either module is this package's.
    """
    # who calls, not where `run` was written: a plugin may register a function of ours
    module: str = sys._getframe(1).f_globals["__name__"]
    _claim(op, backend, module)

    def register(run: Run) -> Run:
        _registered[op, backend] = Implementation(
            op,
            backend,
            run,
            supports,
            configs,
            resources,
            deterministic,
            rival,
            launcher=launcher,
            space=space,
            gradients=gradients,
        )
        plans.forget()
        if (op, backend) not in MODULES:
            add_module(op, backend, module, rival=rival)
        return run

    return register


def adapts(
    op: OpName,
    backend: str,
    stages: Stages,
    *,
    supports: Supports,
    configs: Configs = lambda problem, device: (None,),
    deterministic: bool = True,
    forget: Callable[[], None] = lambda: None,
) -> None:
    """Register other people's kernel, fitted to a call by three stages; arguments as above.

    forget: make an autotuner of its own choose anew, before each problem.
    """
    module: str = sys._getframe(1).f_globals["__name__"]
    _claim(op, backend, module)

    def run(call: Call, config: Config) -> None:
        bound = Bound(call, config, stages)
        bound.launch()
        bound.collect()

    _registered[op, backend] = Implementation(
        op,
        backend,
        run,
        supports,
        configs,
        deterministic=deterministic,
        rival=True,
        stages=stages,
        forget=forget,
    )
    add_module(op, backend, module, rival=True)


@cache
def unavailable(op: OpName, backend: str) -> str | None:
    """Why a backend cannot be loaded here, or None if it is ready."""
    if (op, backend) in _registered:
        return None
    module = module_name(op, backend)
    if module is None:
        return f"not a backend of {op}; there are {', '.join(backends(op))}"
    try:
        importlib.import_module(module)
    except Exception as error:  # a DSL that does not fit its own dependencies raises anything
        what = "library" if is_rival(op, backend) else "DSL"
        remedy = f"; {install}" if (install := _rivals.get((op, backend))) else ""
        return f"cannot import its {what}: {type(error).__name__}: {error}{remedy}"
    return None if (op, backend) in _registered else f"{module} does not register it"


def module_name(op: OpName, backend: str) -> str | None:
    """The full name of the module of a backend; None for one that is not known."""
    if (op, backend) in MODULES:
        return f"{__package__}.{MODULES[op, backend]}"
    return _added.get((op, backend))


def backends(op: OpName) -> list[str]:
    """Every backend of an op, available here or not, in order of preference."""
    return [backend for known, backend in {**MODULES, **_added} if known == op]


def get(op: OpName, backend: str) -> Implementation:
    """The implementation of an op by a backend; raises BackendMissing with the reason."""
    reason = unavailable(op, backend)
    if reason is not None:
        raise BackendMissing(op, backend, reason)
    return _registered[op, backend]


def refusal(op: OpName, backend: str, problem: Problem, device: torch.device) -> str | None:
    """Why a backend does not run a problem on a device, or None if it does."""
    reason = unavailable(op, backend)
    if reason is None:
        reason = get(op, backend).supports(problem, device)
    return None if reason is None else printable(str(reason)) or "refused without a reason"


def choose(
    op: OpName, backend: str, problem: Problem, device: torch.device, *, gradients: bool = False
) -> Implementation:
    """The implementation named, or with `auto` the tuned winner, else the first that takes it.

    gradients: its results will be differentiated; `auto` says in a warning what it leaves for that.
    """
    if backend != "auto":
        implementation = get(op, backend)
        reason = refusal(op, backend, problem, device)
        if reason is None and gradients and not implementation.gradients:
            reason = NO_GRADIENTS
        if reason is not None:
            raise UnsupportedError(op, backend, reason)
        return implementation
    reasons = {name: refusal(op, name, problem, device) for name in contenders(op)}
    able = [name for name, reason in reasons.items() if reason is None]
    if gradients and able:
        left = [name for name in able if not get(op, name).gradients]
        able = [name for name in able if name not in left]
        reasons |= dict.fromkeys(left, NO_GRADIENTS)
    if not able:
        told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise UnsupportedError(op, "auto", told)
    chosen = preferred(op, able, problem, lookup.gpu_of(device))[0]
    if gradients and left:
        warnings.warn(
            f"{op} takes backend {chosen!r} for its gradients; under torch.no_grad() it would take "
            f"{left[0]!r}",
            stacklevel=4,  # who called the op
        )
    return get(op, chosen)


def contenders(op: OpName) -> list[str]:
    """The backends that `auto` chooses from; the others run only on request."""
    return [name for name in backends(op) if name != "reference" and not is_rival(op, name)]


def preferred(
    op: OpName, able: Sequence[str], problem: Problem, gpu: str | None
) -> tuple[str, str]:
    """The backend that `auto` takes of those that run a problem, and why."""
    found = {name: lookup.find(op, name, module_name(op, name), problem, gpu) for name in able}
    return lookup.fastest(found)


def multiprocessors(device: torch.device) -> int:
    """The SMs of a GPU, and those of an H100 where there is none: what is compiled is for it."""
    if device.type != "cuda":
        return H100_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def config_name(config: Config) -> str:
    """The values of a config on one line."""
    return " ".join(f"{name}={value}" for name, value in config_dict(config).items())


def config_dict(config: Config) -> dict[str, Any]:
    """A config as plain values, for a record."""
    return {} if config is None else asdict(config)
