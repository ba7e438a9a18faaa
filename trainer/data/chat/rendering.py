"""Renders a conversation and says of every character of it where it came from, and what is not there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

from trainer.data.chat.hand import CALLS, CONTENT, Form, hand_tools, hand_turns
from trainer.data.chat.paint import Field, Painter, Place, trace
from trainer.data.chat.settle import ORIGIN, REASONING
from trainer.data.chat.shape import Shape, render
from trainer.data.types import TEMPLATE_FAILS, ChatDocument, RowError, TokenizerLike
from trainer.errors import DataError, TemplateFailure

ADAPT = (
    "Change these rows to turns that the template takes (for one without a system role: put the "
    "system prompt into the first user turn), or mend the template: set model.chat_template."
)
MEND_TEMPLATE = "Mend the template there or change these rows, or set model.chat_template."


@dataclass(slots=True)
class Rendering:
    """A conversation as text, and the fields it was made of."""

    document: ChatDocument
    form: Form
    text: str
    fields: list[Field]

    def lost(self) -> dict[Place, int]:
        """Count the characters that the text has not, by turn and part."""
        counts: Counter[Place] = Counter()
        for field in self.fields:
            counts[field.place] += field.num_lost
        for turn, message in enumerate(self.document.messages):
            if message["role"] == "assistant" and not counts[turn, CONTENT]:
                counts[turn, CONTENT] += self._is_changed(turn)
            for call in message.get("tool_calls", []):
                arguments = call["function"]["arguments"]
                keys = arguments if isinstance(arguments, dict) else {}
                counts[turn, CALLS] += sum(key not in self.text for key in keys)
        return {place: count for place, count in counts.items() if count}

    def _is_changed(self, turn: int) -> bool:
        # Quotes and tags are not painted; what is learnt has to be there to the letter.
        for field in self.fields:
            if field.place == (turn, CONTENT) and (extent := field.extent(self.text)):
                return self.text[slice(*extent)].strip() != field.text.strip()
        return False


def render_whole(
    document: ChatDocument, tokenizer: TokenizerLike, shape: Shape, counts: Counter[str]
) -> Rendering:
    """Render a conversation in the form in which the template takes most of it.

    Counts:
        reasoning_moved: conversations whose reasoning the template has under another key; developer_as_system,
        text_arguments, object_arguments: conversations handed over in that form.

    Raises:
        RowError: If the template refuses the conversation in every form, or writes other words than it holds.
    """
    moved = _move_reasoning(document, shape)
    tried: list[Rendering] = []
    refusal: RowError | None = None
    for form in _forms(document, shape):
        try:
            tried.append(render_form(moved, form, tokenizer))
        except RowError as error:
            refusal = refusal or error
            continue
        if not tried[-1].lost():
            break
    if not tried:
        assert refusal is not None
        raise refusal
    best = min(tried, key=lambda rendering: sum(rendering.lost().values()))
    counts["reasoning_moved"] += moved is not document
    counts["developer_as_system"] += best.form.developer == "system"
    counts["text_arguments"] += best.form.text_arguments and _has_calls(document)
    return best


def _move_reasoning(document: ChatDocument, shape: Shape) -> ChatDocument:
    messages = []
    for message in document.messages:
        if REASONING in message:
            origin, opening, closing = message[ORIGIN]
            message = {**message, ORIGIN: (shape.key(origin), opening, closing)}
        messages.append(message)
    return document if messages == document.messages else replace(document, messages=messages)


def _forms(document: ChatDocument, shape: Shape) -> list[Form]:
    first = Form(text_arguments=shape.text_arguments, parts=shape.parts)
    forms = [first]
    if _has_calls(document):
        forms.append(replace(first, text_arguments=not first.text_arguments))
    if any(message["role"] == "developer" for message in document.messages):
        forms += [replace(form, developer="system") for form in forms]
    return forms


def _has_calls(document: ChatDocument) -> bool:
    return any(message.get("tool_calls") for message in document.messages)


def render_form(document: ChatDocument, form: Form, tokenizer: TokenizerLike) -> Rendering:
    """Render a conversation in one form.

    Raises:
        RowError: If the template refuses it or fails on it, or writes other words than it holds.
    """
    turns, tools = hand_turns(document.messages, form), hand_tools(document.tools)
    try:
        text = tokenizer.render_chat(turns, tools)
    except TemplateFailure as error:
        raise RowError(TEMPLATE_FAILS, str(error).rstrip("."), MEND_TEMPLATE) from None
    except DataError as error:
        rule = "hold only conversations that the chat template takes"
        raise RowError(rule, f"one that it refuses: {str(error).rstrip('.')}", ADAPT) from None
    used = set(text)
    painted = partial(_render_painted, document, form, tokenizer)
    for only_letters in (False, True):
        fields = trace(text, painted, only_letters, used)
        if fields is not None:
            return Rendering(document, form, text, fields)
    raise RowError(
        "hold only conversations whose words the chat template writes as they are",
        "one in which it changes them, or decides by them",
        ADAPT,
    )


def _render_painted(
    document: ChatDocument, form: Form, tokenizer: TokenizerLike, painter: Painter
) -> str | None:
    turns = hand_turns(document.messages, form, painter.paint)
    return render(tokenizer, turns, hand_tools(document.tools, painter.paint))
