"""Layers that call methods of their parts which are no forward, read from their code.

ZeRO-3 gathers a module's parameters by hooks on its forward; what another method reads is empty.
"""

from __future__ import annotations

import inspect
import re

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
        try:
            code = inspect.getsource(kind.forward)
        except (OSError, TypeError):
            continue
        for part_name, method in _CALL.findall(code):
            part = module._modules.get(part_name)
            if part is None or isinstance(part, nn.ModuleList | nn.ModuleDict | nn.ParameterDict):
                continue
            is_own = not hasattr(nn.Module, method) and callable(getattr(type(part), method, None))
            if is_own and next(part.parameters(), None) is not None:
                found[kind] = None
    return list(found)
