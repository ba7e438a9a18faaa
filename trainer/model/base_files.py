"""A base's files in the names of the model that is made of them, both ways, one tensor at a time.

transformers renames and merges tensors while it loads, such as the experts of a layer into one. Its own rules are asked
which tensors of the files make which of the model, and are reversed where the model is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config.model import ModelConfig, ModelHead, ModelKind
from trainer.errors import ModelError
from trainer.model.experts import choice_biases
from trainer.model.load import read_whole_config
from trainer.model.multimodal import renamed, text_part, whole_class, whole_names
from trainer.model.packed import forget_packing, names_when_whole, packing_of
from trainer.model.packing_kind import method_of
from trainer.model.places import Places, into_files, into_model, place_tensors
from trainer.model.scorer import auto_class, left_out
from trainer.model.tensor_files import tensor_reader, weight_files


class BaseFiles:
    """The tensors of a base, by the names of the model that trains."""

    def __init__(
        self,
        source: str,
        files: Mapping[str, Path],
        places: Places | None = None,
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
        self._places = Places({name: name for name in files}) if places is None else places
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
                return into_model(found, tensors, self._skeleton)[whole]

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
                for inside, part in into_files(found, parts, self._skeleton).items():
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
    whole, text = _without_memory(config, model)
    if not files:
        return BaseFiles(source, {}, skeleton=text, is_partial=whole_class(config) is not None)
    modules = None if text is whole else whole_names(whole, text)
    method = None if packing is None else method_of(packing)
    places = place_tensors(whole, text, files)
    if model.head is ModelHead.score:
        lost = left_out(places.kept, whole.base_model_prefix)
        places = replace(places, kept=tuple(name for name in places.kept if name not in lost))
    return BaseFiles(source, files, places, modules, whole, packing=method)


def _without_memory(config: Any, model: ModelConfig) -> tuple[Any, Any]:
    """Return the whole model and its language part on the meta device; of most models both are one."""
    kind = whole_class(config)
    with torch.device("meta"):
        if kind is None:
            whole = auto_class(model.head).from_config(config, trust_remote_code=model.trust_remote_code)
            return whole, whole
        whole = kind._from_config(config)
    return whole, text_part(whole)
