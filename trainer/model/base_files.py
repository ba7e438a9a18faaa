"""A base's files in the names of the model that is made of them, both ways, one tensor at a time.

transformers renames and merges tensors while it loads, such as the experts of a layer into one. Its own rules are asked
which tensors of the files make which of the model, and are reversed where the model is written.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config.model import ModelConfig, ModelKind
from trainer.errors import ModelError
from trainer.model.experts import choice_biases
from trainer.model.load import read_whole_config
from trainer.model.multimodal import renamed, text_part, whole_class, whole_names
from trainer.model.packed import forget_packing, names_when_whole, packing_of
from trainer.model.packing_kind import method_of
from trainer.model.tensor_files import tensor_reader, weight_files


@dataclass(frozen=True, slots=True)
class _FileTensor:
    """A tensor of a file that is converted with others."""

    file_name: str
    inside: str
    """Its name once it was renamed, before it is converted."""
    pattern: str


@dataclass(slots=True)
class _Conversion:
    """Tensors of files that together become some of the model."""

    converter: Any
    first: str
    sources: list[_FileTensor]
    targets: tuple[str, ...] = ()
    can_reverse: bool = False


@dataclass(frozen=True, slots=True)
class _Places:
    """Where each tensor of a model is in its files; names of the whole model."""

    plain: dict[str, str] = field(default_factory=dict)
    conversions: dict[str, _Conversion] = field(default_factory=dict)
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


class BaseFiles:
    """The tensors of a base, by the names of the model that trains."""

    def __init__(
        self,
        source: str,
        files: Mapping[str, Path],
        places: _Places | None = None,
        modules: Mapping[str, str] | None = None,
        skeleton: Any = None,
        is_partial: bool = False,
        packing: str | None = None,
    ) -> None:
        """Take tensors by name; without places the model's names are those of the files.

        Args:
            modules: Name in the whole of each module of its language part, where only that trains.
            skeleton: The whole model without memory, which transformers' conversions ask for sizes.
            is_partial: The files are not here, and would hold more than the language part.
            packing: The method by which the files' weights are packed.
        """
        self._is_partial = is_partial
        self.source, self.packing = source, packing
        self._files = files
        self._places = _Places({name: name for name in files}) if places is None else places
        self._modules = modules
        self._texts = None if modules is None else {whole: text for text, whole in modules.items()}
        self._skeleton = skeleton
        names = [*self._places.plain, *self._places.conversions]
        found = ((name, self.text_name(name)) for name in names)
        self._wholes = {text: whole for whole, text in found if text is not None}

    @property
    def names(self) -> list[str]:
        """Return the tensors of the model that the files hold, as the model that trains names them."""
        return list(self._wholes)

    @property
    def is_multimodal(self) -> bool:
        """Tell whether the files hold more than the language part that trains."""
        return self._modules is not None

    def whole_name(self, name: str) -> str:
        """Return the name in the whole model of a module or tensor of the one that trains."""
        return name if self._modules is None else renamed(name, self._modules) or name

    def text_name(self, name: str) -> str | None:
        """Return the name in the model that trains; None for what is no part of it."""
        return name if self._texts is None else renamed(name, self._texts)

    @property
    def exact(self) -> frozenset[str]:
        """Return names, in files and model, of biases of the choice of experts: in bf16 many would be the same."""
        found, plain = [] if self._skeleton is None else choice_biases(self._skeleton), self._places.plain
        return frozenset(
            n for name in found for n in (name, plain.get(name, name), self.text_name(name) or name)
        )

    def file_of(self, name: str) -> tuple[str, Path] | None:
        """Return name and file of a tensor that is in the files as it is; None for one that is converted."""
        key = self._places.plain.get(self._wholes.get(name, ""))
        return None if key is None else (key, self._files[key])

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], Tensor]]:
        """Give a function that reads a tensor of the model by name."""
        with tensor_reader() as read:

            def read_one(name: str) -> Tensor:
                whole = self._wholes[name]
                key = self._places.plain.get(whole)
                if key is not None:
                    return read(self._files[key], key)
                found = self._places.conversions[whole]
                tensors = {s.file_name: read(self._files[s.file_name], s.file_name) for s in found.sources}
                return _forward(found, tensors, self._skeleton)[whole]

            yield read_one

    def as_files(self, stream: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield a whole model under the names and in the shapes of the files, with what is only in them.

        Raises:
            ModelError: A parameter of the base is not among the tensors.
        """
        places, done, waiting = self._places, set[str](), dict[str, Tensor]()
        for name, tensor in stream:
            whole = self.whole_name(name)
            whole = places.firsts.get(whole, whole)
            if whole in done:
                continue
            done.add(whole)
            found = places.conversions.get(whole)
            if found is None or not found.can_reverse:
                for key in (places.plain.get(whole, whole), *places.copies.get(whole, ())):
                    yield key, tensor
                continue
            waiting[whole] = tensor
            if all(target in waiting for target in found.targets):
                parts = {target: waiting.pop(target) for target in found.targets}
                names = {s.inside: s.file_name for s in found.sources}
                for inside, part in _reverse(found, parts, self._skeleton).items():
                    yield names[inside], part
        missing = [name for name in (*places.plain, *places.conversions) if name not in done]
        self._refuse_lost([*missing, *waiting])
        yield from self._copies([places.plain[name] for name in missing] + list(places.kept))

    def _refuse_lost(self, names: Iterable[str]) -> None:
        """Raise for a parameter that was not written; what is no parameter is copied."""
        lost = [name for name in names if name in self._places.parameters or name in self._places.conversions]
        lost = [name for name in lost if self.text_name(name) is not None]
        if lost:
            raise ModelError(
                f"The checkpoint must hold every parameter of {self.source}, but has no {lost[0]}. Report this with "
                "the versions of torch, deepspeed and transformers."
            )

    def _copies(self, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
        with tensor_reader() as read:
            for key in keys:
                yield key, read(self._files[key], key)

    def sentences(self) -> list[str]:
        """Return what a person should know before a model is written under the files' names."""
        if not self._files:
            alone = "; its language model is written alone" if self._is_partial else ""
            return [f"The base has no safetensors files here: tensors have the names of transformers{alone}."]
        said = []
        if self._places.kept:
            kinds = Counter(name.removeprefix("model.").partition(".")[0] for name in self._places.kept)
            shown = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(4))
            more = ", ..." if len(kinds) > 4 else ""
            said.append(
                f"{len(self._places.kept)} tensors of the base did not train and stay: {shown}{more}."
            )
        if self._places.stuck:
            count, first = len(self._places.stuck), self._places.stuck[0]
            said.append(
                f"{count} tensors keep transformers' names, such as {first}: it cannot take back how it made them of "
                "the base's files."
            )
        return said


def open_base(source: str, model: ModelConfig) -> BaseFiles:
    """Return the files of a base in the names of the model that trains; an empty one where they are not here."""
    files = {} if model.kind is ModelKind.random else weight_files(source, model.revision)
    config = read_whole_config(source, model)
    packing = packing_of(config)
    files = names_when_whole(files, packing)
    forget_packing(config)
    whole, text = _without_memory(config, model.trust_remote_code)
    if not files:
        return BaseFiles(source, {}, skeleton=text, is_partial=whole_class(config) is not None)
    modules = None if text is whole else whole_names(whole, text)
    method = None if packing is None else method_of(packing)
    return BaseFiles(source, files, _place(whole, text, files), modules, whole, packing=method)


def _without_memory(config: Any, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the whole model and its language part on the meta device; of most models both are one."""
    from transformers import AutoModelForCausalLM

    kind = whole_class(config)
    with torch.device("meta"):
        if kind is None:
            whole = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            return whole, whole
        whole = kind._from_config(config)
    return whole, text_part(whole)


def _place(whole: Any, text: Any, files: Mapping[str, Path]) -> _Places:
    """Ask transformers' rules where each tensor of the files goes."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

    rules = get_model_conversion_mapping(whole)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state, prefix = whole.state_dict(keep_vars=True), f"{whole.base_model_prefix}."
    plain: dict[str, str] = {}
    by_target: dict[str, _Conversion] = {}
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
            found = by_target.setdefault(target, _Conversion(converter, target, []))
            found.sources.append(_FileTensor(name, inside, pattern))
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
    return _Places(plain, conversions, tuple(unknown + kept), firsts, copies, parameters, stuck)


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


def _prove(found: _Conversion, files: Mapping[str, Path], whole: Any) -> None:
    """Convert tensors of the files' shapes without memory, there and back: the same names and shapes must come out."""
    with tensor_reader(is_empty=True) as read:
        empty = {
            source.file_name: read(files[source.file_name], source.file_name) for source in found.sources
        }
    try:
        made = _forward(found, empty, whole)
        found.targets = tuple(made)
        back = _reverse(found, made, whole)
    except Exception:  # a rule without a way back says so in many ways
        return
    meant = {source.inside: empty[source.file_name].shape for source in found.sources}
    found.can_reverse = {name: tensor.shape for name, tensor in back.items()} == meant


def _forward(found: _Conversion, tensors: Mapping[str, Tensor], whole: Any) -> dict[str, Tensor]:
    """Return tensors of the model, made of tensors of the files."""
    rule = copy.deepcopy(found.converter)
    for source in found.sources:
        rule.add_tensor(found.first, source.file_name, source.pattern, tensors[source.file_name])
    return _only(rule.convert(found.first, model=whole, config=whole.config))


def _reverse(found: _Conversion, tensors: Mapping[str, Tensor], whole: Any) -> dict[str, Tensor]:
    """Return tensors of the files by their names before conversion."""
    rule, first = found.converter.reverse_transform(), ""
    for name, tensor in tensors.items():
        renamed_name, pattern = rule.rename_source_key(name)
        first = first or renamed_name
        rule.add_tensor(renamed_name, name, pattern, tensor)
    return _only(rule.convert(first, model=whole, config=whole.config))


def _only(made: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
