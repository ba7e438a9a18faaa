"""Where each tensor of a base's files goes in the model, by transformers' rules, and how it is converted both ways."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.model.tensor_files import tensor_reader


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of a file that is converted with others."""

    file_name: str
    inside: str
    """Its name once it was renamed, before it is converted."""
    pattern: str


@dataclass(slots=True)
class Conversion:
    """Tensors of files that together become some of the model."""

    converter: Any
    first: str
    sources: list[FileTensor]
    targets: tuple[str, ...] = ()
    can_reverse: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where each tensor of a model is in its files; names of the whole model."""

    plain: dict[str, str] = field(default_factory=dict)
    conversions: dict[str, Conversion] = field(default_factory=dict)
    """By each tensor of the model."""
    kept: tuple[str, ...] = ()
    """Tensors of the files that are no part of what trains."""
    firsts: dict[str, str] = field(default_factory=dict)
    """Of a tensor with several names, such as a tied output layer: the first of them, which stands in `plain`."""
    copies: dict[str, list[str]] = field(default_factory=dict)
    """Further tensors of the files that are the same one, by its first name."""
    parameters: frozenset[str] = frozenset()
    """Without those that the class itself never trains: no checkpoint holds them, and the files do."""
    stuck: tuple[str, ...] = ()
    """Tensors of the model that cannot become those of the files again."""


def place_tensors(whole: Any, text: Any, files: Mapping[str, Path]) -> Places:
    """Ask transformers' rules where each tensor of the files goes."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

    rules = get_model_conversion_mapping(whole)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state, prefix = whole.state_dict(keep_vars=True), f"{whole.base_model_prefix}."
    plain: dict[str, str] = {}
    by_target: dict[str, Conversion] = {}
    unknown = []
    for name in sorted(files, key=dot_natural_key):
        inside = _apply(renamings, name)
        target, converter, pattern = _convert_name(converters, inside)
        if target not in state and (other := _with_prefix(target, prefix, state)) is not None:
            inside = prefix + inside if other.startswith(prefix) else inside.removeprefix(prefix)
            target = other
        if target not in state and _with_prefix(name, prefix, state) is not None:
            target, converter = _with_prefix(name, prefix, state) or name, None
        if target not in state:
            unknown.append(name)
        elif converter is None:
            plain[target] = name
        else:
            found = by_target.setdefault(target, Conversion(converter, target, []))
            found.sources.append(FileTensor(name, inside, pattern))
    for found in by_target.values():
        _prove(found, files, whole)
    ours = {id(tensor) for tensor in text.state_dict(keep_vars=True).values()}
    kept = [plain.pop(name) for name in list(plain) if id(state[name]) not in ours]
    for first in [first for first in by_target if id(state[first]) not in ours]:
        kept += [source.file_name for source in by_target.pop(first).sources]
    stuck = tuple(first for first, found in by_target.items() if not found.can_reverse)
    conversions = {target: found for found in by_target.values() for target in found.targets}
    firsts, copies = _same(state), dict[str, list[str]]()
    for name in [name for name in plain if name in firsts]:
        copies.setdefault(firsts[name], []).append(plain.pop(name))
    for name in copies:
        plain[name], *copies[name] = copies[name]
    named = whole.named_parameters(remove_duplicate=False)
    parameters = frozenset(name for name, parameter in named if parameter.requires_grad)
    return Places(plain, conversions, tuple(unknown + kept), firsts, copies, parameters, stuck)


def _apply(renamings: Iterable[Any], name: str) -> str:
    for rule in renamings:
        name, _ = rule.rename_source_key(name)
    return name


def _convert_name(converters: Iterable[Any], name: str) -> tuple[str, Any, str]:
    """Return what a renamed tensor becomes, by which converter, and by which pattern of it."""
    for converter in converters:
        target, pattern = converter.rename_source_key(name)
        if pattern is not None:
            return target, converter, pattern
    return name, None, ""


def _with_prefix(name: str, prefix: str, state: Mapping[str, Any]) -> str | None:
    """Return the name as it is, with or without the prefix of the body, whichever the model has."""
    tried = (name, name.removeprefix(prefix), prefix + name)
    return next((other for other in tried if other in state), None)


def _same(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the first name of every tensor that has several, by each of them."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return {name: same[0] for same in names.values() if len(same) > 1 for name in same}


def _prove(found: Conversion, files: Mapping[str, Path], whole: Any) -> None:
    """Convert tensors of the files' shapes without memory, there and back: the same names and shapes must come out."""
    with tensor_reader(is_empty=True) as read:
        empty = {
            source.file_name: read(files[source.file_name], source.file_name) for source in found.sources
        }
    try:
        made = into_model(found, empty, whole)
        found.targets = tuple(made)
        back = into_files(found, made, whole)
    except Exception:  # a rule without a way back says so in many ways
        return
    meant = {source.inside: empty[source.file_name].shape for source in found.sources}
    found.can_reverse = {name: tensor.shape for name, tensor in back.items()} == meant


def into_model(found: Conversion, tensors: Mapping[str, Tensor], whole: Any) -> dict[str, Tensor]:
    """Return tensors of the model, made of tensors of the files."""
    rule = copy.deepcopy(found.converter)
    for source in found.sources:
        rule.add_tensor(found.first, source.file_name, source.pattern, tensors[source.file_name])
    return _only(rule.convert(found.first, model=whole, config=whole.config))


def into_files(found: Conversion, tensors: Mapping[str, Tensor], whole: Any) -> dict[str, Tensor]:
    """Return tensors of the files by their names before conversion."""
    rule, first = found.converter.reverse_transform(), ""
    for name, tensor in tensors.items():
        renamed_name, pattern = rule.rename_source_key(name)
        first = first or renamed_name
        rule.add_tensor(renamed_name, name, pattern, tensor)
    return _only(rule.convert(first, model=whole, config=whole.config))


def _only(made: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
