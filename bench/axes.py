"""Axes as they are written on a command line: `64,128`, `512:16384:*2`, `1:9:+2`, `bf16,fp32`."""

from collections.abc import Sequence

DIGITS = 18  # of a number: it has 64 bits
LARGEST = 2**63 - 1  # of what a table holds as a whole number
MOST = 100_000  # values of one range, and points of one grid


class AxisError(ValueError):
    """An axis that cannot be read: names the axis, what was expected, what came, what to do."""

    def __init__(self, axis: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"--{axis}: expected {expected}, got {shortened(got)!r}; {remedy}")


def shortened(text: str) -> str:
    """A text as an error quotes it."""
    return text if len(text) <= 60 else f"{text[:57]}..."


HOW = "write numbers as 64,128, ranges as 512:16384:*2 (factor) or 1:9:+2 (step)"


def numbers(axis: str, text: str) -> tuple[int, ...]:
    """Positive whole numbers in the order given, each once; raises AxisError."""
    found: list[int] = []
    for part in text.split(","):
        found += _range(axis, part.strip()) if ":" in part else [_number(axis, part.strip())]
    return tuple(dict.fromkeys(found))


def words(axis: str, text: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Words out of `allowed`, in the order given, each once; raises AxisError."""
    found = [part.strip() for part in text.split(",")]
    for word in found:
        if word not in allowed:
            raise AxisError(axis, f"words out of {', '.join(allowed)}", word, "separate by commas")
    return tuple(dict.fromkeys(found))


def _number(axis: str, text: str) -> int:
    value = whole(text)
    if value is None and text.isdecimal():
        raise AxisError(axis, f"numbers of at most {DIGITS} digits", text, HOW)
    if not value:
        raise AxisError(axis, "positive whole numbers", text, HOW)
    return value


def whole(text: str) -> int | None:
    """The whole number that a text is; None if it is none, or has more than DIGITS digits."""
    return int(text) if text.isdecimal() and len(text) <= DIGITS else None


def _range(axis: str, text: str) -> list[int]:
    """`low:high:*factor` or `low:high:+step`; high is included where the steps meet it."""
    parts = text.split(":")
    if len(parts) != 3 or parts[2][:1] not in ("*", "+"):
        raise AxisError(axis, "low:high:*factor or low:high:+step", text, HOW)
    low, high, step = _number(axis, parts[0]), _number(axis, parts[1]), _number(axis, parts[2][1:])
    by_factor = parts[2][0] == "*"
    if high < low:
        raise AxisError(axis, "low:high with low <= high", text, "exchange the two")
    if by_factor and step < 2:
        raise AxisError(axis, "a factor of at least 2", text, HOW)
    if not by_factor and (high - low) // step >= MOST:
        raise AxisError(axis, f"ranges of at most {MOST} values", text, "take larger steps")
    found = [low]
    while (following := found[-1] * step if by_factor else found[-1] + step) <= high:
        found.append(following)
    return found
