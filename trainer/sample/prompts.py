"""What a sample begins with, and where its turns end: found in the tokenizer and its chat template.

A chat begins with the template's text up to where a user's words would stand; an instruct model goes on
with a question of its own (Magpie, arXiv 2406.08464). No template and no token is known by name here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from trainer.config.generate import Prompts
from trainer.errors import ConfigError, DataError

ASKED = "Palimpsest-question-7f3a"
SAID = "Palimpsest-answer-7f3a"


class PromptTokenizer(Protocol):
    """What this room asks of a tokenizer; `trainer.model.tokenizer.Tokenizer` is one."""

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins documents, if there is one."""

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends documents, if there is one."""

    @property
    def has_chat_template(self) -> bool:
        """Whether render_chat can be used."""

    def encode_fragments(self, texts: list[str]) -> list[list[int]]:
        """Encode without adding special tokens; those spelled out in a text are recognised."""

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render a conversation with the chat template."""


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """The fixed token ids around what is sampled; the same for every sample, so nothing is padded.

    A text: header, sampled text. A chat: header, sampled question, bridge, sampled answer.
    """

    is_chat: bool
    header: list[int]
    """BOS, or the template up to the user's words."""
    bridge: list[int]
    """From the end of the user's turn to where the answer begins; its first token is sampled too."""
    stops: list[int]
    """Tokens that end a text or an answer."""
    opening: str = ""
    """Words of the answer that the generation prompt writes itself, such as an opened <think>."""

    @property
    def longest(self) -> int:
        """Fixed tokens of a sample."""
        return len(self.header) + len(self.bridge)

    def to_plain(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


def uses_chat(asked: Prompts, tokenizer: PromptTokenizer) -> bool:
    """Tell whether samples are chats.

    Raises:
        ConfigError: Chats are asked for and there is no template, or there is nothing to begin with at all.
    """
    if not tokenizer.has_chat_template and tokenizer.bos_id is None and tokenizer.eos_id is None:
        raise ConfigError(
            "`model.chat_template` must be given for a tokenizer with neither BOS, EOS nor a chat template, but is "
            "null instead: nothing tells where a sample begins. Give a template, or name `bos_token` or `eos_token` in "
            "tokenizer_config.json; where the base cannot be sampled, replay=general replays text."
        )
    if asked is Prompts.chat and not tokenizer.has_chat_template:
        raise ConfigError(
            "`replay.generate.prompts` must be text (or auto) for a tokenizer without a chat template, but is "
            "chat instead. Set replay.generate.prompts=text, or model.chat_template=FILE."
        )
    return asked is not Prompts.text and tokenizer.has_chat_template


def plan_prompts(
    is_chat: bool, tokenizer: PromptTokenizer, special_ids: Set[int], model_stops: Iterable[int]
) -> PromptPlan:
    """Find what every sample begins and ends with.

    Args:
        special_ids: Tokens that stand for no text.
        model_stops: End tokens that the model's generation_config names.
    Raises:
        ConfigError: The tokenizer has no token to begin with, or its template does not show where turns end.
    """
    stops = set(model_stops) | ({tokenizer.eos_id} if tokenizer.eos_id is not None else set())
    if is_chat:
        return _plan_chat(tokenizer, special_ids, stops)
    # Models without BOS have seen the end of one document before the next.
    first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if first is None:
        raise ConfigError(
            "`replay.generate.prompts` must be chat for a tokenizer with neither BOS nor EOS, but is text "
            "instead. Use a tokenizer that names one of them."
        )
    return PromptPlan(False, [first], [], sorted(stops))


def _plan_chat(tokenizer: PromptTokenizer, special_ids: Set[int], stops: set[int]) -> PromptPlan:
    question = {"role": "user", "content": ASKED}
    answer = {"role": "assistant", "content": SAID}
    try:
        asked = tokenizer.render_chat([question], add_generation_prompt=True)
        whole = tokenizer.render_chat([question, answer])
    except DataError as refusal:
        raise _unfit(f"refuses a question and an answer: {refusal}") from refusal
    if asked.count(ASKED) != 1 or whole.count(ASKED) != 1 or whole.count(SAID) != 1:
        raise _unfit("does not write the words of a turn as they are, once")
    header_text, bridge_text = asked.split(ASKED)
    between, ending = whole.split(ASKED)[1].split(SAID)
    if not header_text:
        raise _unfit("writes nothing before the user's words")
    header, bridge, end = tokenizer.encode_fragments([header_text, bridge_text, ending])
    if not bridge or bridge[0] not in special_ids:
        raise _unfit("ends the user's turn with no special token, so that nobody can tell where it ends")
    if end and end[0] in special_ids:
        stops = stops | {end[0]}
    if not stops:
        raise _unfit("ends an answer with no special token")
    opening = bridge_text[len(between) :] if bridge_text.startswith(between) else ""
    return PromptPlan(True, header, bridge, sorted(stops), opening)


def _unfit(reason: str) -> ConfigError:
    return ConfigError(
        "`replay.generate.prompts` must be text for this tokenizer, but is chat (or auto) instead: its chat "
        f"template {reason.rstrip('.')}. Set replay.generate.prompts=text, or model.chat_template=FILE."
    )


class Draft:
    """One sample while it grows: says which token comes next, the model's or the template's."""

    def __init__(self, plan: PromptPlan, max_new_tokens: int, place: int | None = None) -> None:
        """Begin behind the header; behind a question of the model's own, or a given one, comes its answer.

        Args:
            place: Of the given prompt that it answers.
        """
        self._plan = plan
        self._stops = frozenset(plan.stops)
        self._limit = max_new_tokens
        self._forced: list[int] = []
        self.place = place
        self.turns: list[list[int]] = [[]]
        self.num_sampled = 0
        """Tokens the model was asked for, end marks included."""
        self.is_done = False
        self.has_ended = False
        """Whether the model ended the sample itself."""

    def ask(self, prompt: Sequence[int]) -> None:
        """Put the rest of a given prompt before what is sampled."""
        self._forced = list(prompt)

    def take(self, sampled: int) -> int:
        """Take the model's token, unless the template has the word; return the token that follows."""
        if self.is_done:
            return sampled
        if self._forced:
            return self._forced.pop(0)
        self.num_sampled += 1
        asks = self._plan.is_chat and len(self.turns) == 1 and self.place is None
        if asks and sampled == self._plan.bridge[0]:
            self.turns.append([])
            self._forced = self._plan.bridge[1:]
        elif sampled in self._stops:
            self.is_done = True
            self.has_ended = not asks
        else:
            self.turns[-1].append(sampled)
            self.is_done = len(self.turns[-1]) >= self._limit
        return sampled
