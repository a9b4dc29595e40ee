"""What a report leaves in its folder: the files of the last one, and none of an earlier one."""

from collections.abc import Sequence
from pathlib import Path

NOTE = ".report"  # names what the last report wrote, a line for each file


def supersede(out: Path, written: Sequence[Path]) -> None:
    """Remove what an earlier report wrote into a folder and this one did not."""
    note = out / NOTE
    names = {path.relative_to(out).as_posix() for path in written}
    earlier = note.read_text(encoding="utf-8").splitlines() if note.is_file() else []
    for name in set(earlier) - names:
        path = out / name
        if path.is_file() and path.resolve().is_relative_to(out.resolve()):
            path.unlink()
    note.write_text("".join(f"{name}\n" for name in sorted(names)), encoding="utf-8")
