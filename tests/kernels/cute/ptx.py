"""An interpreter of PTX in NumPy: runs a compiled kernel where there is no GPU.

All threads of all blocks step together; of threads that have parted, those with the lowest
instruction go first. It checks what a GPU does not: that every access lies inside one tensor and is
aligned, that shared memory is written before it is read, by the same thread or before a barrier,
and that whole blocks and warps reach their barriers and shuffles.

It knows the instructions that the kernels of this package compile to. ex2, rcp and rsqrt are exact
here, and approximate on a GPU.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

WARP = 32
SHARED = 232448  # bytes a block of an H100 may have

Words = np.ndarray[Any, Any]

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {16: np.int16, 32: np.int32, 64: np.int64}


class FaultError(Exception):
    """The kernel did what it must not do."""


def bits_of(kind: str) -> int:
    """32 for f32, 16 for bf16, 32 for f16x2."""
    number = re.fullmatch(r"[a-z]+(\d+)(x2)?", kind)
    assert number is not None, kind
    return int(number[1]) * (2 if number[2] else 1)


def decoded(words: Words, kind: str) -> Words:
    """Register bits as numbers of a kind; floats as float64."""
    if kind == "f32":
        return words.astype(np.uint32).view(np.float32).astype(np.float64)
    if kind == "f16":
        return words.astype(np.uint16).view(np.float16).astype(np.float64)
    if kind == "bf16":
        return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind[0] == "s":
        return words.astype(UNSIGNED[bits_of(kind)]).view(SIGNED[bits_of(kind)])
    return words.astype(UNSIGNED[bits_of(kind)])


def encoded(values: Words, kind: str, rounding: str = "rn") -> Words:
    """Numbers (floats as float64) as register bits of a kind."""
    if kind == "f32":
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = values.astype(np.float32)
            beyond = rounded > values if rounding == "rm" else abs(rounded) > abs(values)
            if rounding in ("rm", "rz"):
                toward = -np.inf if rounding == "rm" else 0
                rounded = np.where(beyond, np.nextafter(rounded, np.float32(toward)), rounded)
        return rounded.astype(np.float32).view(np.uint32)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    if kind == "bf16":
        return torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return values.astype(UNSIGNED[bits_of(kind)])


class Program:
    """The entry of a PTX text."""

    def __init__(self, text: str) -> None:
        head, body = text[text.index(".entry") :].split("\n{", 1)
        self.params = re.findall(r"\.param \.(\w+)[^,\n]*?(\w+)\s*[,\n]", head)
        threads = re.search(r"\.reqntid (\d+)", head)
        assert threads is not None
        self.threads = int(threads[1])
        self.labels: dict[str, int] = {}
        self.code: list[tuple[str, str, list[str]]] = []
        for statement in re.split(r"[;\n]", re.sub(r"//[^\n]*", "", body)):
            self._add(statement.strip())

    def _add(self, statement: str) -> None:
        label = re.match(r"(\$\w+|LAB_WAIT|DONE):\s*", statement)
        if label:
            self.labels[label[1]] = len(self.code)
            statement = statement[label.end() :]
        if re.match(r"[{}.]|@P1|bra.uni\s+LAB_WAIT|$", statement):
            return  # declarations, and the loop around a wait
        guard, operation, rest = re.fullmatch(
            r"(?:@(!?%p\d+)\s+)?([\w.:]+)\s*(.*)", statement
        ).groups()  # type: ignore[union-attr]
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
        self.code.append((guard or "", operation, operands))


class Machine:
    """All blocks of one launch over the memory of some tensors."""

    def __init__(self, program: Program, blocks: int, tensors: list[torch.Tensor]) -> None:
        self.program, self.blocks = program, blocks
        self.count = blocks * program.threads
        ids = np.arange(self.count)
        self.block, self.thread = ids // program.threads, ids % program.threads
        self.warp = ids // WARP
        self.registers: dict[str, Words] = {}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        self.starts = np.array(sorted(storages), dtype=np.int64)
        self.memory = [
            torch.empty(0, dtype=torch.uint8).set_(storages[int(at)]).numpy() for at in self.starts
        ]
        self.shared = np.zeros(blocks * SHARED, np.uint8)
        self.writer = np.full(blocks * SHARED, -1, np.int64)  # of each byte of shared memory
        self.written = np.full(blocks * SHARED, -1, np.int64)  # the barrier before, by number
        self.reader = np.full(blocks * SHARED, -1, np.int64)
        self.read = np.full(blocks * SHARED, -1, np.int64)
        self.epoch = np.zeros(blocks, np.int64)
        self.expected: dict[tuple[int, int], int] = {}  # (block, barrier) -> bytes to come
        self.active = np.ones(self.count, bool)

    def run(self, arguments: list[int]) -> None:
        """Run every thread to its end; arguments are the kernel's parameters."""
        self.arguments = {
            name: value & (2 ** bits_of(kind) - 1)
            for (kind, name), value in zip(self.program.params, arguments, strict=True)
        }
        end = len(self.program.code)
        at = np.zeros(self.count, np.int64)
        while (now := int(at.min())) < end:
            self.active = at == now
            guard, operation, operands = self.program.code[now]
            if guard:
                condition = self.registers[guard.removeprefix("!")]
                self.active = self.active & (condition != guard.startswith("!"))
            at[at == now] = now + 1
            if operation.startswith("bra"):
                at[self.active] = self.program.labels[operands[0]]
            elif operation == "ret":
                at[self.active] = end
            elif self.active.any():
                self.step(operation, operands)

    def get(self, operand: str, kind: str) -> Words:
        """An operand's value in every thread."""
        if operand.startswith("%"):
            special = {"%tid.x": self.thread, "%ctaid.x": self.block}
            return decoded(special.get(operand, self.registers.get(operand, self.thread * 0)), kind)
        if operand.startswith("0f"):
            word = int(operand[2:], 16)
        elif operand == "__dynamic_shmem__0":
            word = 0
        else:
            word = int(operand, 0) & (2**64 - 1)
        words = np.full(self.count, word, np.uint64)
        return decoded(words, kind)

    def set(self, operand: str, words: Words) -> None:
        """Set a register in the active threads."""
        if operand == "_":
            return
        old = self.registers.get(operand)
        if old is None:
            old = np.zeros(self.count, words.dtype)
        self.registers[operand] = np.where(self.active, words, old)

    def step(self, operation: str, operands: list[str]) -> None:
        """Carry out one instruction in the active threads."""
        name, *rest = operation.split(".")
        kind = rest[-1] if rest else ""
        if name in ("ld", "st"):
            self.access(name, rest, operands)
        elif name == "bar":
            self.barrier(rest)
        elif name in ("mbarrier", "cp", "fence"):
            self.asynchronous(operation, operands)
        elif name == "shfl":
            self.shuffle(rest[1], operands)
        elif name == "ldmatrix":
            self.load_matrices("trans" in rest, operands)
        elif name == "mma":
            self.matrix_product(rest, operands)
        elif name == "setp":
            a, b = (self.get(o, kind) for o in operands[1:])
            self.set(operands[0], COMPARE[rest[0]](a, b))
        elif name == "selp":
            chosen = self.registers[operands[3]]
            one, other = (self.get(o, f"u{bits_of(kind)}") for o in operands[1:3])
            self.set(operands[0], np.where(chosen, one, other))
        elif kind == "pred":
            self.set(operands[0], PREDICATES[name](*(self.predicate(o) for o in operands[1:])))
        elif name == "mov":
            self.move(kind, operands)
        elif name == "cvt":
            self.convert(rest, operands)
        elif "wide" in rest:
            a, b = (
                self.get(o, kind).astype(f"{'i' if kind[0] == 's' else 'u'}8")
                for o in operands[1:3]
            )
            self.set(operands[0], encoded(a * b, f"u{2 * bits_of(kind)}"))
        else:
            rounding = next((r for r in rest if r in ("rm", "rz")), "rn")
            with np.errstate(all="ignore"):
                result = ARITHMETIC[name](*(self.get(o, kind) for o in operands[1:]))
            if name in ("shl", "shr", "and", "or", "xor", "not") or kind[0] != "f":
                self.set(operands[0], encoded(result, f"u{bits_of(kind)}"))
            else:
                self.set(operands[0], encoded(result, kind, rounding))

    def predicate(self, operand: str) -> Words:
        """A predicate register or constant."""
        if operand.startswith("%"):
            return self.registers[operand]
        return np.full(self.count, operand not in ("0", "false"))

    def move(self, kind: str, operands: list[str]) -> None:
        """mov, and packing two halves."""
        to, source = operands
        if source.startswith("{"):
            low, high = (self.get(o, "u16").astype(np.uint32) for o in source[1:-1].split(", "))
            self.set(to, low | high << 16)
        elif to.startswith("{"):
            word = self.get(source, "u32")
            for part, shift in zip(to[1:-1].split(", "), (0, 16), strict=True):
                self.set(part, (word >> shift).astype(np.uint16))
        else:
            self.set(to, self.get(source, f"u{bits_of(kind)}"))

    def convert(self, rest: list[str], operands: list[str]) -> None:
        """cvt between two kinds."""
        to, source = rest[-2:]
        values = [self.get(o, source) for o in operands[1:]]
        if to.endswith("x2"):
            high, low = (encoded(v, to[:-2]).astype(np.uint32) for v in values)
            self.set(operands[0], high << 16 | low)
            return
        (value,) = values
        if "rmi" in rest:
            value = np.floor(value)
        if "rzi" in rest:
            value = np.trunc(np.where(np.isnan(value), 0, value)).astype(np.int64)
        if "sat" in rest:
            value = np.nan_to_num(np.clip(value, 0, 1))
        if to.startswith(("f", "bf")):
            value = value.astype(np.float64)
        self.set(operands[0], encoded(value, to if to[0] != "s" else f"u{bits_of(to)}"))

    def address(self, operand: str, kind: str) -> Words:
        """The address in brackets, int64."""
        base, _, offset = operand[1:-1].partition("+")
        words = self.get(base, kind).astype(np.int64)
        return words + int(offset or 0)

    def access(self, name: str, rest: list[str], operands: list[str]) -> None:
        """ld and st; vectors too."""
        kind = rest[-1]
        size = bits_of(kind) // 8
        place, value = operands if name == "st" else operands[::-1]
        if rest[0] == "param":
            self.set(value, np.full(self.count, self.arguments[place[1:-1]], UNSIGNED[8 * size]))
            return
        registers = value.strip("{}").split(", ")
        width = size * len(registers)
        if rest[0] == "shared":
            buffer, o = self.shared_bytes(self.address(place, "u32"), width, name)
        else:
            buffer, o = self.global_bytes(self.address(place, "u64"), width)
        rows = o[:, None] + np.arange(width)
        if name == "ld":
            data = np.ascontiguousarray(buffer[rows]).view(UNSIGNED[8 * size])
            for i, register in enumerate(registers):
                words = np.zeros(self.count, UNSIGNED[8 * size])
                words[self.active] = data[:, i]
                self.set(register, words)
        else:
            words = [self.get(r, f"u{8 * size}")[self.active] for r in registers]
            buffer[rows] = np.ascontiguousarray(np.stack(words, 1)).view(np.uint8)

    def global_bytes(self, address: Words, width: int) -> tuple[Words, Words]:
        """The storage that holds the active threads' addresses, and their offsets in it."""
        address = address[self.active]
        if (address % width).any():
            raise FaultError(f"an access to {width} bytes is not aligned")
        which = np.searchsorted(self.starts, address, "right") - 1
        if (which != which[0]).any() or which[0] < 0:
            raise FaultError("an access outside the tensors")
        o = address - self.starts[which[0]]
        if (o + width > len(self.memory[which[0]])).any():
            raise FaultError("an access beyond the end of a tensor")
        return self.memory[which[0]], o

    def shared_bytes(self, address: Words, width: int, name: str) -> tuple[Words, Words]:
        """Shared memory and the active threads' offsets in it; raises on a race."""
        address = address[self.active]
        if (address % width).any() or (address < 0).any() or (address + width > SHARED).any():
            raise FaultError("an access to shared memory is not aligned, or outside it")
        block, ids = self.block[self.active], np.nonzero(self.active)[0]
        o = block * SHARED + address
        rows = o[:, None] + np.arange(width)
        epoch = self.epoch[block][:, None]
        others = (self.writer[rows] != ids[:, None]) & (self.written[rows] == epoch)
        if others.any():
            raise FaultError("shared memory that another thread wrote since the last barrier")
        if name == "ld":
            if (self.writer[rows] == -1).any():
                raise FaultError("shared memory is read before it is written")
            self.reader[rows], self.read[rows] = ids[:, None], epoch
        else:
            others = (self.reader[rows] != ids[:, None]) & (self.read[rows] == epoch)
            if others.any():
                raise FaultError("shared memory that another thread read since the last barrier")
            self.writer[rows], self.written[rows] = ids[:, None], epoch
        return self.shared, o

    def barrier(self, rest: list[str]) -> None:
        """bar.sync and bar.warp.sync."""
        parts = self.warp if rest[0] == "warp" else self.block
        inside = np.isin(parts, np.unique(parts[self.active]))
        if (inside != self.active).any():
            raise FaultError("some threads miss a barrier")
        if rest[0] != "warp":
            self.epoch[np.unique(self.block[self.active])] += 1

    def shuffle(self, mode: str, operands: list[str]) -> None:
        """shfl.sync.bfly and .idx over whole warps."""
        to, source, lane = operands[:3]
        words = self.get(source, "u32")
        self.whole_warps("a shuffle")
        ids = np.arange(self.count)
        by = self.get(lane, "u32").astype(np.int64)
        self.set(to, words[ids ^ by] if mode == "bfly" else words[ids // WARP * WARP + by])

    def whole_warps(self, what: str) -> Words:
        """The active warps, of which every lane must be active."""
        warps = np.unique(self.warp[self.active])
        if (np.isin(self.warp, warps) != self.active).any():
            raise FaultError(f"some lanes miss {what}")
        return warps

    def load_matrices(self, transposed: bool, operands: list[str]) -> None:
        """ldmatrix x4: lane 8 i + j has the address of row j of matrix i."""
        warps = self.whole_warps("a load of matrices")
        buffer, o = self.shared_bytes(self.address(operands[1], "u32"), 16, "ld")
        rows = np.ascontiguousarray(buffer[o[:, None] + np.arange(16)]).view(np.uint16)
        found = rows.reshape(len(warps), 4, 8, 8)
        if transposed:
            found = found.swapaxes(2, 3)
        words = np.ascontiguousarray(found).view(np.uint32).reshape(len(warps), 4, WARP)
        for i, register in enumerate(operands[0].strip("{}").split(", ")):
            value = np.zeros(self.count, np.uint32)
            value[self.active] = words[:, i].ravel()
            self.set(register, value)

    def matrix_product(self, rest: list[str], operands: list[str]) -> None:
        """mma.m16n8k16 and k8 of 16-bit numbers, with float32 accumulators."""
        warps = self.whole_warps("a matrix product")
        kind, k = rest[6], int(rest[2].removeprefix("m16n8k"))
        to, *sources = (operand.strip("{}").split(", ") for operand in operands)
        words, halves, numbers = [
            [self.get(name, as_kind)[self.active].reshape(len(warps), WARP) for name in names]
            for names, as_kind in zip(sources, ("u32", "u32", "f32"), strict=True)
        ]
        g, t = np.arange(WARP) // 4, np.arange(WARP) % 4
        a, b = np.zeros((len(warps), 16, k)), np.zeros((len(warps), k, 8))
        c = np.zeros((len(warps), 16, 8))
        for e in (0, 1):
            for i, word in enumerate(words):
                half = decoded(word >> 16 * e & 0xFFFF, kind)
                a[:, g + i % 2 * 8, 2 * t + e + i // 2 * 8] = half
            for i, word in enumerate(halves):
                b[:, 2 * t + e + i * 8, g] = decoded(word >> 16 * e & 0xFFFF, kind)
            for i in (0, 1):
                c[:, g + i * 8, 2 * t + e] = numbers[2 * i + e]
        c = c + a @ b
        for i, register in enumerate(to):
            value = np.zeros(self.count, np.uint32)
            value[self.active] = encoded(c[:, g + i // 2 * 8, 2 * t + i % 2], "f32").ravel()
            self.set(register, value)

    def asynchronous(self, operation: str, operands: list[str]) -> None:
        """Memory barriers and bulk copies, which arrive at once."""
        if operation.startswith("fence"):
            return
        threads = np.nonzero(self.active)[0]
        if operation.startswith("cp.async.bulk"):
            to, source, size, barrier = operands
            shared, gmem = self.address(to, "u32"), self.address(source, "u64")
            counts, barriers = self.get(size, "u32"), self.address(barrier, "u32")
            for i in threads:
                count, block = int(counts[i]), int(self.block[i])
                if shared[i] % 16 or gmem[i] % 16 or count % 16:
                    raise FaultError("a bulk copy is not aligned to 16 bytes")
                which = int(np.searchsorted(self.starts, gmem[i], "right")) - 1
                o = int(gmem[i] - self.starts[which])
                if o + count > len(self.memory[which]) or shared[i] + count > SHARED:
                    raise FaultError("a bulk copy beyond the end of a tensor")
                here = slice(
                    block * SHARED + int(shared[i]), block * SHARED + int(shared[i]) + count
                )
                self.shared[here] = self.memory[which][o : o + count]
                self.writer[here], self.written[here] = -2, -1
                self.expected[block, int(barriers[i])] -= count
            return
        barriers = self.address(operands[-2], "u32") if "try_wait" not in operation else None
        if "expect_tx" in operation:
            assert barriers is not None
            sizes = self.get(operands[-1], "u32")
            for i in threads:
                self.expected[int(self.block[i]), int(barriers[i])] += int(sizes[i])
        elif "init" in operation:
            assert barriers is not None
            for i in threads:
                self.expected[int(self.block[i]), int(barriers[i])] = 0
        else:
            awaited = self.address(operands[1], "u32")
            for i in threads:
                if self.expected.get((int(self.block[i]), int(awaited[i]))) != 0:
                    raise FaultError("a wait that would not end")


COMPARE: dict[str, Callable[[Words, Words], Words]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
    "leu": lambda a, b: ~(a > b), "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b), "ltu": lambda a, b: ~(a >= b),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}  # fmt: skip
PREDICATES: dict[str, Callable[..., Words]] = {
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "mov": lambda a: a,
}  # fmt: skip
ARITHMETIC: dict[str, Callable[..., Words]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.floor_divide,
    "fma": lambda a, b, c: a * b + c, "mad": lambda a, b, c: a * b + c,
    "neg": np.negative, "abs": np.abs, "max": np.fmax, "min": np.fmin,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "shl": lambda a, b: np.where(b < a.itemsize * 8, a << (b % (a.itemsize * 8)), 0),
    "shr": lambda a, b: a >> (b % (a.itemsize * 8)),
    "ex2": np.exp2, "rcp": np.reciprocal, "rsqrt": lambda a: 1 / np.sqrt(a),
    "copysign": lambda sign, value: np.copysign(value, sign),
}  # fmt: skip
