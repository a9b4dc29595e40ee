"""What a Triton kernel costs on an H100, found by compiling it where there may be no GPU."""

import json
import re
from contextlib import redirect_stdout
from dataclasses import asdict
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.cache import get_cache_manager
from triton.runtime.jit import JITFunction, create_function_from_signature

from ..registry import Resources

HOPPER = GPUTarget("cuda", 90, 32)


def compile_kernel(kernel: Any, *args: Any, **kwargs: Any) -> CompiledKernel:
    """Compile `kernel[grid](*args, **kwargs)` for sm_90a, specialised as that launch would be.

    Tensors may lie on any device, `meta` included: their dtype and alignment count, not their data.
    kwargs holds constexprs and compiler options (num_warps, num_stages, maxnreg, ...).
    """
    source, options = _source(kernel, *args, **kwargs)
    return triton.compile(source, target=HOPPER, options=options)


def _source(kernel: Any, *args: Any, **kwargs: Any) -> tuple[ASTSource, dict[str, Any]]:
    """What a launch compiles, and the compiler's options."""
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("TRITON_INTERPRET=1 is set: the interpreter compiles nothing")
    backend = make_backend(HOPPER)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*args, **kwargs)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, kwargs, bound, specialization, options
    )
    return ASTSource(kernel, signature, constants, attributes), vars(parsed)


def resources(kernel: Any, *args: Any, **kwargs: Any) -> Resources:
    """Registers, spills and shared memory of one launch; arguments as for `compile_kernel`."""
    source, options = _source(kernel, *args, **kwargs)
    # the assembler's log is not in Triton's cache: its figures are put there
    text = f"{source.hash()} {sorted(options.items())} {triton.knobs.nvidia.ptxas.version}"
    cache = get_cache_manager(sha256(text.encode()).hexdigest())
    path = cache.get_file("resources.json")
    if path is not None:
        return Resources(**json.loads(Path(path).read_text()))
    found = _compile_with_log(source, options)
    cache.put(json.dumps(asdict(found)), "resources.json", binary=False)
    return found


def _compile_with_log(source: ASTSource, options: dict[str, Any]) -> Resources:
    knobs = triton.knobs
    with knobs.nvidia.scope(), knobs.compilation.scope(), redirect_stdout(StringIO()) as log:
        knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=HOPPER, options=options)
    return Resources(
        kernel=compiled.metadata.name,
        registers=_number(r"Used (\d+) registers", log.getvalue()),
        spills=_number(r"(\d+) bytes spill stores", log.getvalue()),
        shared=compiled.metadata.shared,
        threads=32 * compiled.metadata.num_warps,
    )


def _number(pattern: str, log: str) -> int:
    found = re.search(pattern, log)
    if found is None:
        raise RuntimeError(f"ptxas printed nothing like {pattern!r}:\n{log}")
    return int(found[1])
