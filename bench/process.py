"""A worker process as the parent sees it: start, talk, find out why it died, kill."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Pipe

from .jobs import Expect, Job, Message, Start

# -P: the working directory is not searched, where a folder named `kernels` may lie
COMMAND = "import sys; from mamba3_bench.bench.worker import main; main(int(sys.argv[1]))"


class Process:
    """One worker in its own session, so that a kill takes its compilers along."""

    def __init__(self, start: Start, environment: Mapping[str, str]) -> None:
        """Start a worker; environment: variables set beside those of this process."""
        self.connection, theirs = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, str(theirs.fileno())],
            env={**os.environ, **environment},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        theirs.close()
        with suppress(OSError):  # one that is dead already is found out by `hear`
            self.connection.send(start)
        self.heard = time.monotonic()

    def give(self, what: Job | Expect) -> None:
        """Send a job; a worker that is dead already is found out by `hear`."""
        self.heard = time.monotonic()
        with suppress(OSError):
            self.connection.send(what)

    def hear(self) -> Message | None:
        """The next message; None if the worker is dead."""
        self.heard = time.monotonic()
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def why_dead(self) -> str:
        """How a worker that closed its connection ended, with the last line it wrote."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "worker closed its connection"
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        said = self._last_words()
        return f"worker died: {how}" + (f"; it wrote: {said}" if said else "")

    def where_stuck(self) -> str:
        """The innermost Python frame of a worker that does not answer."""
        before = self._log.seek(0, os.SEEK_END)
        os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(0.5)
        self._log.seek(before)
        lines = self._log.read().decode(errors="replace").splitlines()
        found = re.search(r'File "(?:.*/)?([^"]+)", (line \d+ in \S+)', "\n".join(lines))
        return f"{found[1]} {found[2]}" if found else "no Python frame"

    def kill(self) -> None:
        """End the worker and everything it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()
        self._log.close()

    def _last_words(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4096))
        lines = self._log.read().decode(errors="replace").splitlines()
        # a fault handler's dump begins with what happened and goes on with frames
        lines = [
            line
            for line in lines
            if line.strip() and not line.startswith((" ", "Thread", "Current", "Extension"))
        ]
        return lines[-1].strip()[:300] if lines else ""
