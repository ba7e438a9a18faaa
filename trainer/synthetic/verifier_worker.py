"""The process that a verifier runs in: a line of JSON in, a line out, until its input ends.

What the verifier prints goes to standard error. It runs with the rights of who started it: this is no sandbox.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.synthetic.verifying import Verdict, check_answer, plain_verdict, verdict_of

Function = Callable[[str, str, dict[str, Any]], object]


def main() -> None:
    """Answer requests: the first names the verifier, each other is a prompt, an answer, a row and a reference."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    what = json.loads(sys.stdin.readline())
    function: Function | None = None
    digest = ""
    if what["function"] is not None:
        try:
            function, digest = load_function(what["function"])
        except BaseException as error:
            _say(told, {"cannot": _short(error)})
            return
    _say(told, {"cannot": None, "digest": digest})
    for line in sys.stdin:
        _say(told, plain_verdict(_judge(what, function, json.loads(line))))


def load_function(name: str) -> tuple[Function, str]:
    """Import MODULE:FUNCTION, the working directory first; return it, and the digest of the module's file."""
    sys.path.insert(0, os.getcwd())
    module, _, attribute = name.partition(":")
    imported = importlib.import_module(module)
    found = getattr(imported, attribute)
    if not callable(found):
        raise TypeError(f"{attribute} is no function")
    file = getattr(imported, "__file__", None)
    return found, hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _judge(what: dict[str, Any], function: Function | None, asked: dict[str, Any]) -> Verdict:
    if function is None:
        return check_answer(what["kind"], what["pattern"], asked["answer"], asked["reference"])
    try:
        return verdict_of(function(asked["prompt"], asked["answer"], asked["row"]))
    except Exception as error:
        return Verdict(None, failure=f"raised {_short(error)}")


def _short(error: BaseException) -> str:
    return f"{type(error).__name__} ({str(error)[:200]})"


def _say(told: Any, value: dict[str, Any]) -> None:
    told.write(json.dumps(value) + "\n")
    told.flush()


if __name__ == "__main__":
    main()
