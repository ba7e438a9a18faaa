"""Layers that ZeRO-3 cannot gather as it does others, read from their code.

It gathers a module's parameters by hooks on its forward: what another method reads is empty, and a forward that is
called more often on one rank than on another waits for ranks that do not come.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator

from torch import nn

_CALL = re.compile(r"self\.(\w+)\.(\w+)\(")


def calling_parts(model: nn.Module) -> list[type[nn.Module]]:
    """Return the classes of modules whose forward calls a method of a part with parameters that torch does not define.

    Code that cannot be read, and code that comes with a model and calls so by another name, is not found.
    """
    found: dict[type[nn.Module], None] = {}
    for module in model.modules():
        kind = type(module)
        if kind in found or not module._modules:
            continue
        for part_name, method in _CALL.findall(_code_of(kind)):
            part = module._modules.get(part_name)
            if part is None or isinstance(part, nn.ModuleList | nn.ModuleDict | nn.ParameterDict):
                continue
            is_own = not hasattr(nn.Module, method) and callable(getattr(type(part), method, None))
            if is_own and next(part.parameters(), None) is not None:
                found[kind] = None
    return list(found)


def looping_parts(model: nn.Module) -> list[type[nn.Module]]:
    """Return the classes of modules whose forward calls a part with parameters in a loop within another.

    As often as its rows and tokens ask, which differs between ranks (the indexer of Qwen4-Exp). What holds a stack of
    layers is left out: it goes through that as often everywhere.
    """
    found: dict[type[nn.Module], None] = {}
    for module in model.modules():
        kind = type(module)
        if kind in found or not module._modules:
            continue
        names = set(_called_in_loops(_code_of(kind)))
        if not names or any(isinstance(one, nn.ModuleList) for one in module.modules()):
            continue
        parts = (module._modules.get(name) for name in names)
        if any(part is not None and next(part.parameters(), None) is not None for part in parts):
            found[kind] = None
    return list(found)


def _called_in_loops(code: str) -> Iterator[str]:
    """Yield the names of parts that are called in a loop within another."""
    if len(re.findall(r"\bfor\b|\bwhile\b", code)) < 2:
        return
    loops = (ast.For, ast.While)
    for outer in (node for node in ast.walk(ast.parse(textwrap.dedent(code))) if isinstance(node, loops)):
        for inner in (node for node in ast.walk(outer) if isinstance(node, loops) and node is not outer):
            for call in (node for node in ast.walk(inner) if isinstance(node, ast.Call)):
                called = call.func
                if (
                    isinstance(called, ast.Attribute)
                    and isinstance(called.value, ast.Name)
                    and called.value.id == "self"
                ):
                    yield called.attr


def _code_of(kind: type[nn.Module]) -> str:
    """Return the code of a class's forward; nothing where it cannot be read."""
    try:
        return inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return ""
