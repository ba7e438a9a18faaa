"""Loads a tokenizer and gives the data room the few things it asks of one.

The rules about special tokens live here: BOS once, EOS never, chats rendered but not completed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import traceback
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

from trainer.config.model import ModelConfig
from trainer.config.nearby import looks_local
from trainer.errors import DataError, ModelError, TemplateFailure
from trainer.model.encoding import Offsets, encode_behind, encode_ids, encode_offsets
from trainer.model.on_disk import NOTHING_THERE, is_missing, no_template, no_tokenizer
from trainer.model.template_syntax import no_jinja
from trainer.model.tune.new_tokens import NewTokens, add_to_tokenizer
from trainer.runtime.time_limit import TookTooLong, at_most

CLOCK = "strftime_now"
"""The only clock that chat templates have."""
RENDER_S = 10.0
"""A real template renders a long conversation in a hundredth of that."""
SPARE_NAMES = ("pad", "reserved", "unused", "extra")


class Tokenizer:
    """A Hugging Face tokenizer behind the protocol `trainer.data.types.TokenizerLike`."""

    def __init__(
        self,
        hf: Any,
        new_tokens: Sequence[str] = (),
        template_date: datetime.date | None = None,
        template_of: str = "",
    ) -> None:
        """Take the tokenizer and add tokens to it.

        Args:
            template_date: Day that the chat template is told; None is today.
            template_of: File or folder that the chat template is from, to be named.
        Raises:
            ConfigError: It has one of them already, or one is empty.
        """
        self.hf = hf
        self.new: NewTokens | None = add_to_tokenizer(hf, new_tokens) if new_tokens else None
        self._template_date = template_date
        self._template_of = template_of or str(getattr(hf, "name_or_path", ""))

    @cached_property
    def digest(self) -> str:
        """Hash of everything that decides token ids and chat rendering; the same on every machine."""
        backend = getattr(self.hf, "backend_tokenizer", None)
        described: dict[str, Any] = {
            "class": "" if backend is not None else type(self.hf).__name__,
            "special": {name: str(token) for name, token in self.hf.special_tokens_map.items()},
            "bos": [self.bos_id, self.adds_bos],
            "template": self.hf.chat_template,
        }
        if self.asks_date and self._template_date is not None:
            described["date"] = self._template_date.isoformat()
        if backend is not None:
            described["backend"] = json.loads(backend.to_str())
            # Set by calls, not by the tokenizer's files.
            described["backend"].update(truncation=None, padding=None)
        else:
            described["vocab"] = self.hf.get_vocab()
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """Largest token id plus one."""
        return int(max(self.hf.get_vocab().values())) + 1

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins documents, if there is one."""
        return self._id(self.hf.bos_token_id)

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends documents, if there is one."""
        return self._id(self.hf.eos_token_id)

    @cached_property
    def pad_id(self) -> int | None:
        """A token to fill masked positions with, other than EOS where the tokenizer has one.

        Nothing finds padding by comparing with this id, so sharing EOS would mask no EOS.
        """
        return next(self.spare_ids(), self.eos_id)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether raw documents of this tokenizer begin with BOS."""
        if self.bos_id is None:
            return False
        ids = self.hf("a", verbose=False)["input_ids"]
        return bool(ids) and ids[0] == self.bos_id

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text: BOS, EOS, turn marks and the like."""
        added = (i for i, token in self.hf.added_tokens_decoder.items() if token.special)
        return frozenset(map(int, (*self.hf.all_special_ids, *added)))

    @cached_property
    def special_texts(self) -> frozenset[str]:
        """How tokens that stand for no text are spelled."""
        added = (str(token) for token in self.hf.added_tokens_decoder.values() if token.special)
        return frozenset(filter(None, map(str, (*self.hf.all_special_tokens, *added))))

    @property
    def turn_end(self) -> str | None:
        """The token that the chat template writes behind an answer, if it does."""
        return None if self.turn_end_id is None else self.decode([self.turn_end_id])

    @cached_property
    def turn_end_id(self) -> int | None:
        """Id of the token that the chat template writes behind an answer, if it does."""
        if not self.has_chat_template:
            return None
        try:
            said = "Palimpsest"
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
            ending = self.render_chat(turns).rpartition(said)[2]
        except DataError:
            return None
        first = next(iter(self.encode_fragments([ending])[0]), None)
        return first if first in self.special_ids else None

    @property
    def has_chat_template(self) -> bool:
        """Whether render_chat can be used."""
        return bool(self.hf.chat_template)

    @cached_property
    def asks_date(self) -> bool:
        """Whether the chat template asks for the date."""
        return CLOCK in json.dumps(self.hf.chat_template)

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Encode raw documents: BOS once if the tokenizer adds it, even if a text brings its own."""
        encoded = self.encode_fragments(texts)
        if not self.adds_bos or self.bos_id is None:
            return encoded
        return [ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids] for ids in encoded]

    def encode_fragments(self, texts: list[str]) -> list[list[int]]:
        """Encode without adding special tokens; those spelled out in a text are recognised."""
        return encode_ids(self.hf, texts)

    def encode_with_offsets(self, texts: list[str]) -> list[tuple[list[int], Offsets]]:
        """Encode like encode_fragments, and give each token its characters [start, end).

        Raises:
            ModelError: If the tokenizer cannot tell offsets.
        """
        self._require_offsets()
        return encode_offsets(self.hf, texts)

    def encode_behind(self, texts: list[str], places: list[int]) -> list[tuple[list[int], int | None]]:
        """Encode like encode_fragments, and count the tokens that end before or at a place in each text.

        Returns:
            The ids and that number, where all tokens behind these end after the place; None where offsets have to tell.

        Raises:
            ModelError: As `encode_with_offsets`.
        """
        self._require_offsets()
        return encode_behind(self.hf, texts, places)

    def _require_offsets(self) -> None:
        if not self.hf.is_fast:
            raise ModelError(
                "`model.tokenizer` must be a fast tokenizer (one with a tokenizer.json) for chats and "
                f"completions, but is a {type(self.hf).__name__} instead. Convert it with "
                "transformers, or use format=text or format=ids."
            )

    def encode_spelled(self, text: str, cuts: list[int]) -> tuple[list[int], Offsets] | None:
        """Encode like encode_with_offsets, with the text cut at some characters; None if a cut changes the text.

        A special token that is cut in two is text.
        """
        borders = [0, *sorted(set(cuts)), len(text)]
        pieces = [text[a:b] for a, b in pairwise(borders)]
        ids: list[int] = []
        offsets: Offsets = []
        for start, (more, places) in zip(borders, self.encode_with_offsets(pieces), strict=False):
            ids += more
            offsets += [(start + a, start + b) for a, b in places]
        whole = self.encode_fragments([text])[0]
        return (ids, offsets) if self.decode(ids) == self.decode(whole) else None

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        """Render a conversation with the chat template, special tokens spelled out.

        Args:
            continue_final_message: Leave the last turn open, for a model to go on with it.

        Raises:
            DataError: If there is no template, or it refuses the conversation.
            TemplateFailure: If it fails on the conversation.
            ModelError: If it does not compile, or does not come to an end.
        """
        if not self.has_chat_template:
            raise DataError(
                "`model.chat_template` must name a Jinja file to use chats with this tokenizer, but is "
                "not set, and the tokenizer brings none. Set it, or use the instruct model's tokenizer "
                "as model.tokenizer."
            )
        try:
            if self.asks_date:
                self._stop_clock(tools)
            with at_most(RENDER_S):
                text = self.hf.apply_chat_template(
                    messages,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                )
        except TookTooLong as error:
            raise ModelError(
                f"`model.chat_template` must render a conversation in {RENDER_S:g} s of computing, but that of "
                f"{self._template_of} takes longer instead: its loops may never end. Give another file."
            ) from error
        except TemplateSyntaxError as error:
            raise ModelError(f"`model.chat_template` {no_jinja(error, self._template_of)}") from error
        except (
            TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            IndexError,
        ) as error:
            # Templates fail in Python's own ways too, when they meet a turn they did not foresee.
            place = self._place(error)
            kind = TemplateFailure if place else DataError
            raise kind(place + (str(error) or type(error).__name__)) from error
        return str(text)

    def _place(self, error: Exception) -> str:
        """Return where the template failed on a conversation; empty where it refuses one in words of its own."""
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == "<template>"]
        return (
            f"{self._template_of}, line {lines[-1]}: " if lines and type(error) is not TemplateError else ""
        )

    def _stop_clock(self, tools: list[Any] | None) -> None:
        """Make the template's clock stand at midnight of its day, so that a store is the same tomorrow."""
        midnight = datetime.datetime.combine(self._template_date or datetime.date.today(), datetime.time())
        # transformers lets no caller hand a clock in; a compiled template is kept and found again by its text.
        compiled = _compile_jinja_template(self.hf.get_chat_template(None, tools))
        compiled.globals[CLOCK] = lambda form: midnight.strftime(form)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self.hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer's files, the chat template included."""
        self.hf.save_pretrained(str(folder))

    def spare_ids(self) -> Iterator[int]:
        """Yield tokens to fill masked positions with, the best first, none of them EOS."""
        taken = {None, self.eos_id}
        if self.hf.pad_token_id not in taken:
            yield int(self.hf.pad_token_id)
        if self.hf.unk_token_id not in taken:
            yield int(self.hf.unk_token_id)
        added = {i: t for i, t in self.hf.added_tokens_decoder.items() if t.special}
        for part in SPARE_NAMES:
            yield from (i for i in sorted(added) if part in added[i].content and i not in taken)
        yield from (i for i in sorted(added) if i not in taken)

    @staticmethod
    def _id(token_id: Any) -> int | None:
        return None if token_id is None else int(token_id)


def configured_tokenizer(model: ModelConfig, resolved: str) -> Tokenizer:
    """Load the tokenizer of a resolved model as it is configured; picklable with functools.partial.

    Raises:
        ModelError: There is none, or no readable template.
        ConfigError: If a new token is none.
    """
    path = model.tokenizer or resolved
    local = Path(path).expanduser()
    if is_missing(path):
        raise ModelError(_unloadable(path, NOTHING_THERE))
    try:
        hf = AutoTokenizer.from_pretrained(
            str(local) if looks_local(path) else path,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    except Exception as error:  # transformers raises whatever its many parsers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(_unloadable(path, reason)) from error
    if model.chat_template is not None:
        hf.chat_template = _read_template(model.chat_template)
    day = model.chat_template_date
    date = None if day is None else datetime.date.fromisoformat(day)
    return Tokenizer(hf, model.new_tokens, date, model.chat_template or path)


def _unloadable(path: str, reason: str) -> str:
    return f"`model.tokenizer` {no_tokenizer(path, reason)}"


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"`model.chat_template` {no_template(path, error)}") from error
