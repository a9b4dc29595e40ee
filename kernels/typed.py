"""Whether plain values, read from JSON, are of the types that a class says."""

from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

HOLD = (list, tuple, dict)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a value may be, and what is in it if it is a list or a dict."""

    kinds: tuple[type, ...]
    inner: "Hint | None"

    @classmethod
    def of(cls, hint: Any) -> "Hint | None":
        """None for what may be anything; a float may be whole, and words are judged elsewhere."""
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if Any in parts or Ellipsis in parts:
            return None
        kinds = [get_origin(part) or part for part in parts]
        kinds = [str if kind is Literal else kind for kind in kinds]
        held = [
            get_args(part)[get_origin(part) is dict] for part in parts if get_origin(part) in HOLD
        ]
        return cls(
            (*kinds, int) if float in kinds else tuple(kinds),
            cls.of(held[0]) if held else None,
        )

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError for a value, or one within it, of another type."""
        if not isinstance(value, self.kinds):
            names = " or ".join(kind.__name__ for kind in self.kinds)
            raise TypeError(f"{name}: expected {names}, got {type(value).__name__}")
        if self.inner is not None and isinstance(value, HOLD):
            for each in value.values() if isinstance(value, dict) else value:
                self.inner.check(name, each)


def typed(cls: type, raw: Any, part: str = "") -> dict[str, Any]:
    """The fields of a class as they are; raises TypeError for one of another type, or for one that
    a part lacks.

    part: its name, to say where it is.
    """
    if not isinstance(raw, dict):
        raise TypeError(f"{part or cls.__name__}: expected dict, got {type(raw).__name__}")
    for name in sorted(getattr(cls, "__required_keys__", frozenset()) - raw.keys()):
        raise TypeError(f"{part}.{name}: is missing")
    for name, hint in _hints(cls).items():
        if name in raw:
            hint.check(f"{part}.{name}" if part else name, raw[name])
    return raw


@cache
def _hints(cls: type) -> dict[str, Hint]:
    found = {name: Hint.of(hint) for name, hint in get_type_hints(cls).items()}
    return {name: hint for name, hint in found.items() if hint is not None}
