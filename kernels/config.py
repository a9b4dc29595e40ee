"""What the fields of a config may be; anything else is an error, not a wrong result."""

from collections.abc import Collection
from typing import Any

from .errors import OptionError


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise OptionError for a field that is none of its choices."""
    if value not in choices:
        expected = f"one of {', '.join(map(str, choices))}"
        raise OptionError(f"config.{name}", expected, repr(value), "choose one of these")


def check_multiple(name: str, value: Any, unit: int) -> None:
    """Raise OptionError for tokens that are no multiple of a unit; 0, for all, is one."""
    if not isinstance(value, int) or value < 0 or value % unit:
        expected = f"a multiple of {unit} tokens, or 0 for all"
        raise OptionError(f"config.{name}", expected, repr(value), "round it up or down")
