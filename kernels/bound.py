"""A call bound to one implementation: what is prepared before it, launched, and collected after it.

Our own kernels read and write the buffers of a call, so their launch is the whole run. A kernel of
another library has layouts of its own and allocates its results: what an adapter adds to fit it to
a call is no work of that kernel, and must not be timed with it. So it comes in three stages:

    prepare(call, config) -> the kernel's arguments, in its layouts; views of the call if they fit
    launch(**arguments)   -> its results; this alone is captured, replayed and timed
    collect(call, arguments, results)   writes the call's outputs, for the gate

`refresh` brings other values of the call into the very same argument buffers and fills the results
with NaN, so that a replayed launch can be judged on them. A launch allocates what it only writes:
an argument is never poisoned.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .family import Call

Arguments = dict[str, Any]  # tensors and plain values, by the launch's own names
Launch = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Stages:
    """The three functions of an adapter."""

    prepare: Callable[[Any, Any], Arguments]
    launch: Launch
    collect: Callable[[Any, Arguments, Any], None]


class Bound:
    """One call, prepared for one implementation and config."""

    def __init__(self, call: Call, config: Any, stages: Stages) -> None:
        """Prepare the arguments, without timing."""
        self.call, self.config, self.stages = call, config, stages
        self.arguments = self._prepared()
        self.results: Any = None

    def launch(self) -> None:
        """Do the work, on the current stream."""
        with torch.no_grad():
            self.results = self.stages.launch(**self.arguments)

    def collect(self) -> None:
        """Write the call's outputs from the results of the last launch."""
        with torch.no_grad():
            self.stages.collect(self.call, self.arguments, self.results)

    def refresh(self) -> None:
        """Take the call's present values into the same buffers; poison the results.

        An argument that is a view of the call's own tensors is up to date already.
        """
        held = list(tensors(self.arguments))
        for buffer, fresh in zip(held, tensors(self._prepared()), strict=True):
            if buffer.data_ptr() != fresh.data_ptr():
                buffer.copy_(fresh)
        kept = {tensor.untyped_storage().data_ptr() for tensor in held}
        kept |= {tensor.untyped_storage().data_ptr() for tensor in self.call.tensors().values()}
        for result in tensors(self.results):
            if result.is_floating_point() and result.untyped_storage().data_ptr() not in kept:
                result.fill_(torch.nan)

    def _prepared(self) -> Arguments:
        with torch.no_grad():
            return self.stages.prepare(self.call, self.config)


def direct(run: Callable[[Any, Any], None]) -> Stages:
    """The stages of an implementation that reads and writes the call's own buffers."""
    return Stages(
        prepare=lambda call, config: {"call": call, "config": config},
        launch=run,
        collect=lambda call, arguments, results: None,
    )


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in a nest of tuples, lists and dicts, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors(value)
