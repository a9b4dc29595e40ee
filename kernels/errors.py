"""What a caller can get wrong: each error names the tensor, expected, got, and the remedy."""


class Mamba3Error(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(Mamba3Error, ValueError):
    """A tensor or option does not fit: `subject: expected ..., got ...; remedy`."""

    def __init__(self, subject: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(subject, expected, got, remedy)  # as given, so that it can be pickled

    def __str__(self) -> str:
        subject, expected, got, remedy = self.args
        return f"{subject}: expected {expected}, got {got}; {remedy}"


class KindError(InputError):
    """An argument is of another class, for instance no tensor."""


class ShapeError(InputError):
    """A tensor has the wrong shape."""


class DtypeError(InputError):
    """A tensor has the wrong dtype."""


class DeviceError(InputError):
    """A tensor lies on another device than the rest."""


class LayoutError(InputError):
    """A tensor's strides are not ones the kernels read."""


class RangeError(InputError):
    """A tensor holds a value outside its promised range."""


class OptionError(InputError):
    """An option has a value that does not exist."""


class UnsupportedError(Mamba3Error, NotImplementedError):
    """No implementation, or not the one asked for, takes this problem."""

    def __init__(self, op: str, backend: str, reason: str) -> None:
        super().__init__(op, backend, reason)
        self.reason = reason

    def __str__(self) -> str:
        op, backend, reason = self.args
        return f"{op}: backend {backend!r} does not take this problem: {reason}"


class BackendTaken(Mamba3Error, ValueError):
    """A module registers a backend that is this package's, or takes one that a plugin has."""

    def __init__(self, op: str, backend: str, owner: str) -> None:
        super().__init__(op, backend, owner)

    def __str__(self) -> str:
        op, backend, owner = self.args
        return f"{op}: backend {backend!r} is that of {owner}; register yours by another name"


class BackendMissing(Mamba3Error, LookupError):
    """The backend asked for does not exist or cannot be loaded here."""

    def __init__(self, op: str, backend: str, reason: str) -> None:
        super().__init__(op, backend, reason)
        self.reason = reason

    def __str__(self) -> str:
        op, backend, reason = self.args
        return f"{op}: backend {backend!r} is not available: {reason}"


def printable(text: str) -> str:
    """A text that can be written anywhere: what no UTF-8 has, as of a broken file name, escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
