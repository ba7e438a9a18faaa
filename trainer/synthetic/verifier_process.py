"""A verifier in a process of its own, with a hard limit of time: one that hangs or dies has failed, another begins."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

from trainer.errors import ConfigError
from trainer.runtime.tied import tied
from trainer.synthetic.verifying import Verdict, from_plain

KEY = "synthetic.sample.verifier"
START_S = 120.0
"""Longest import of a module with a verifier."""
WORKER = "trainer.synthetic.verifier_worker"


class VerifierProcess:
    """Asks a verifier, one answer after the other. Its process ends with this one."""

    def __init__(self, verifier: str, pattern: str | None, timeout_s: float) -> None:
        """Start the process of MODULE:FUNCTION, or of a built-in verifier.

        Raises:
            ConfigError: The function cannot be loaded.
        """
        is_function = ":" in verifier
        self._verifier, self._timeout_s = verifier, timeout_s
        self._what = {"function": verifier if is_function else None, "kind": verifier, "pattern": pattern}
        self._rest = b""
        self.digest = ""
        """Of the file of the function; empty for what is built in."""
        self._process = self._start()

    def check(self, prompt: str, answer: str, row: dict[str, Any], reference: str) -> Verdict:
        """Return the verdict on an answer."""
        if self._process.poll() is not None:
            self._process = self._start()
        asked = {"prompt": prompt, "answer": answer, "row": row, "reference": reference}
        try:
            told = self._ask(asked, self._timeout_s)
        except TimeoutError:
            self.close()
            return Verdict(None, failure=f"has not answered within {self._timeout_s:g} s")
        except (EOFError, OSError, ValueError):
            self.close()
            return Verdict(None, failure=f"ended its process (code {self._process.returncode})")
        return from_plain(told)

    def close(self) -> None:
        """End the process, and whatever it started in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _start(self) -> subprocess.Popen[bytes]:
        command = tied([sys.executable, "-m", WORKER], signal.SIGKILL)
        # A group of its own, so that a Ctrl-C of the terminal is this process's alone.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._rest = b""
        try:
            told = self._ask(self._what, START_S)
            cannot, self.digest = told["cannot"], told.get("digest", "")
        except TimeoutError:
            cannot = f"it was not loaded within {START_S:g} s"
        except (EOFError, OSError, ValueError):
            cannot = "its process ended while it was loaded"
        if cannot is not None:
            self.close()
            raise ConfigError(
                f"`{KEY}` must name a function that can be loaded, but {self._verifier} cannot: {cannot}. It is looked "
                "for in the working directory and in installed packages, as MODULE:FUNCTION."
            )
        return self._process

    def _ask(self, value: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Write a line and return the one that is answered; raises TimeoutError, EOFError, OSError or ValueError."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(value, default=str).encode() + b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError
                read = os.read(process.stdout.fileno(), 1 << 16)
                if not read:
                    raise EOFError
                self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))
