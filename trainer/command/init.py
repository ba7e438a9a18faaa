"""`palimpsest init`: look at a model and at data and write an experiment that composes as it is written."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.command.free_name import free_name
from trainer.command.named_model import NamedModel, look_at_model
from trainer.config.describe import as_word
from trainer.config.learn import LearnConfig, Reasoning
from trainer.config.many import many
from trainer.config.options import OWN, group_options
from trainer.config.rule import told_together
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.errors import ConfigError, TrainerError
from trainer.forecast.card import find_cards

if TYPE_CHECKING:
    from trainer.command.row_tokens import Tokens
    from trainer.data.rows.guess import Guess

WORDS = ("model", "data", "name", "recipe", "folder", "chat_template", "reasoning", "ignore")
_WORDS_HAVE = "What `palimpsest init` was given has"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REPLAY = "# Replay of 5 % of general text keeps what the model knew: add `- override /replay: general`.\n"
_LOSSES = (
    "# Another loss: `- override /objective: NAME` (palimpsest explain objective; docs/objectives.md).\n"
)
_PREFERRED = {
    "preference": ("dpo", "pairs of answers: DPO"),
    "unpaired": ("kto", "answers with a label: KTO"),
}
"""The objective of each format of preferences, and for what its recipe is chosen."""
_TEMPLATE = Path(__file__).with_name("experiment.yaml.tmpl")


@dataclass(slots=True)
class Wish:
    """The words of `palimpsest init`."""

    model: str = ""
    data: str = ""
    name: str = ""
    recipe: str = ""
    folder: Path = field(default_factory=lambda: Path(OWN))
    chat_template: str = ""
    reasoning: str = ""
    ignore: list[str] = field(default_factory=list)
    is_site: bool = False


def read_words(words: Sequence[str]) -> Wish:
    """Return what the words of the command line ask for.

    Raises:
        ConfigError: Words that are none of init's or are missing, with what is wrong with the model and the data.
    """
    given: dict[str, str] = {}
    sentences: list[str] = []
    meant: set[str] = set()
    for word in (word for word in words if word != "--site"):
        key, equals, value = word.partition("=")
        if not equals or key not in WORDS or not value:
            listed = ", ".join(f"{name}=..." for name in WORDS)
            near = difflib.get_close_matches(key, [one for one in WORDS if one != key], n=1, cutoff=0.6)
            meant.update([key], near)
            place = _place_of(key) or (_did_you_mean(f"{near[0]}=...") if near and "." not in key else "")
            sentences.append(
                f"`palimpsest init` must be given {listed} or --site, but is given '{word}' instead.{place}"
            )
        else:
            given[key] = value
    wish = Wish(
        **{key: value for key, value in given.items() if key not in ("folder", "ignore")},
        folder=Path(given.get("folder", OWN)).expanduser(),
        ignore=[one.strip() for one in given.get("ignore", "").strip("[]").split(",") if one.strip()],
        is_site="--site" in words,
    )
    if not wish.is_site or wish.model or wish.data:
        lacking = [key for key in ("model", "data") if not getattr(wish, key) and key not in meant]
        example = "palimpsest init model=models/llama data=chats.jsonl name=first"
        sentences += [
            f"`{key}` must be given to `palimpsest init`, but is missing. Write: {example}" for key in lacking
        ]
    sentences += _wrong_values(wish)
    if sentences:
        raise told_together([*sentences, *_look(wish)[2]], _WORDS_HAVE)
    return wish


def _wrong_values(wish: Wish) -> Iterator[str]:
    """Yield a sentence for every word whose value cannot be."""
    if wish.name and not _NAME.fullmatch(wish.name):
        free = free_name(wish.name, wish.folder / ("cluster" if wish.is_site else "experiment"))
        yield f"`name` must be letters, digits, _, - and ., but is '{wish.name}' instead. Set name={free}."
    choices = {"recipe": group_options()["recipe"], "reasoning": [kind.value for kind in Reasoning]}
    for key, known in choices.items():
        value = getattr(wish, key)
        if value and value not in known:
            near = difflib.get_close_matches(value, known, n=1, cutoff=0.6)
            fix = "to choose" if key == "recipe" else "for all"
            yield (
                f"`{key}` must be one of {', '.join(known)}, but is '{value}' instead."
                f"{''.join(map(_did_you_mean, near))} Leave it out {fix}."
            )


def _did_you_mean(word: str) -> str:
    return f" Did you mean {word}?"


def _look(wish: Wish) -> tuple[NamedModel | None, Guess | None, list[str]]:
    """Return what is known of the model and of the data that are given, and a sentence for each that cannot be used."""
    from trainer.data.rows.guess import guess_layout

    model, guess, sentences = None, None, []
    try:
        model = look_at_model(wish.model, wish.chat_template) if wish.model else None
    except TrainerError as error:
        sentences.append(str(error))
    kinds = [kind.value for kind in Reasoning]
    learn = LearnConfig(reasoning=Reasoning(wish.reasoning)) if wish.reasoning in kinds else LearnConfig()
    try:
        if wish.data:
            can_chat = model is None or model.can_chat
            guess = guess_layout(_source_name(wish.data), wish.data, can_chat, wish.ignore, learn)
    except TrainerError as error:
        sentences.append(str(error))
    return model, guess, sentences


def _place_of(key: str) -> str:
    """Return where a word belongs that is not init's; empty where it is none of a configuration."""
    group = key.partition(".")[0]
    if group == "cluster":
        return (
            " What is trained on one node or on many is said afterwards: give cluster=slurm and it to `palimpsest "
            "submit`, with the words that init prints for train."
        )
    if "." in key or group in group_options():
        return " Give it to the commands that init prints, or write it into the file that init writes."
    return ""


def write_experiment(wish: Wish) -> list[str]:
    """Write the experiment and return what to say of it.

    Raises:
        TrainerError: The model, the data or the file cannot be used.
    """
    from trainer.command import first_look as look

    model, guess, sentences = _look(wish)
    if model is None or guess is None:
        raise told_together(sentences, _WORDS_HAVE)
    source_name, source = _source_name(wish.data), guess.source
    is_talk = source.format.value in ("chat", "completion", *_PREFERRED)
    objective, liked = _PREFERRED.get(source.format.value, ("", ""))
    tokens, unknown = _look_at_rows(wish, model, guess)
    usual = "preference_lora" if objective else "lora" if is_talk else "continued_pretrain"
    recipe = wish.recipe or usual
    name = wish.name or source_name
    file = wish.folder / "experiment" / f"{name}.yaml"
    held = look.choose_held_out(guess.holding)
    sizes = look.choose_sizes(guess, tokens, model.context, find_cards().count, held.share)
    words = shlex.join([f"experiment={name}", f"hydra.searchpath=[file://{_absolute(wish.folder)}]"])
    text = string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name,
        words=words,
        what=f"{recipe} of {wish.model} ({model.kind}) on {wish.data} ({guess.title}, {many(guess.num_files, 'file')}; "
        f"{guess.holding.rows_read})",
        defaults=_defaults_text(model, recipe, objective),
        model=_model_text(wish, model),
        source=_source_text(source_name, source, guess.named, guess.lines),
        long=look.long_text(sizes.num_long, guess),
        seq_len=sizes.seq_len,
        context=sizes.because,
        held=f"{held.frac:g}",
        held_because=held.because,
        batch=sizes.batch_tokens,
        steps=f"about {many(sizes.num_steps, 'step')} an epoch",
        lr=_lr_of(recipe),
        replay=_LOSSES if objective else "" if is_talk else _REPLAY,
    )
    write_new(file, text)
    config = _compose(file, name, wish.folder)
    because = f"for {liked}" if liked else "for conversations and pairs" if is_talk else "for text"
    why = "as asked" if wish.recipe else because
    said = [
        model.says,
        look.say_data(wish.data, guess, tokens),
        look.say_choice(recipe, why, sizes),
        *look.say_long(guess, sizes),
        look.say_held_out(held),
        look.say_fit(config),
        f"Written: {file}",
        *model.lines,
        *guess.lines,
        *unknown,
        "",
        "Then:",
    ]
    return [*said, *model.commands(wish.model, words)]


def _look_at_rows(wish: Wish, model: NamedModel, guess: Guess) -> tuple[Tokens, list[str]]:
    """Return the tokens of the rows, and what cannot be known of them here."""
    from trainer.command.row_tokens import count_tokens

    unknown = _check_template(wish, model, guess)
    tokens = count_tokens(_rendering_folder(model, guess), wish.chat_template, guess, model.make is not None)
    return tokens, [*tokens.notes, *unknown]


def _check_template(wish: Wish, model: NamedModel, guess: Guess) -> list[str]:
    """Refuse conversations for a model without a chat template; return what cannot be known of them here."""
    if guess.source.format.value == "chat" and not model.can_chat:
        raise ConfigError(
            f"`chat_template` must be given for conversations, since {wish.model} brings no chat template. Give "
            "chat_template=FILE, a Jinja file, or the instruct model."
        )
    num_peculiar = sum(row.is_peculiar for row in guess.holding.documents)
    if not num_peculiar or model.folder is not None or model.make is not None:
        return []
    return [
        f"{many(num_peculiar, 'row')} with tools, reasoning, system or other turns: palimpsest prepare "
        f"says whether the chat template of {wish.model} renders them{model.where}."
    ]


def _rendering_folder(model: NamedModel, guess: Guess) -> Path | None:
    """Return the folder with the model's tokenizer; it is made where it has to render conversations and can be."""
    is_rendered = any(row.num_turns for row in guess.holding.documents)
    return Path(model.make()) if model.make is not None and is_rendered else model.folder


def _lr_of(recipe: str) -> str:
    """Return the learning rate that a recipe sets, as YAML reads it for a number."""
    from trainer.config.store import compose_config

    mantissa, _, exponent = f"{compose_config([f'recipe={recipe}']).optim.lr:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def write_new(file: Path, text: str) -> None:
    """Write a file that must not be there yet, and the folders above it.

    Raises:
        ConfigError: It is there, or cannot be written.
    """
    if file.exists():
        free = free_name(file.stem, file.parent)
        raise ConfigError(
            f"`name` must be that of a new file, but {file} is there already. Set name={free}, or remove it."
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)
    except OSError as error:
        raise ConfigError(
            f"`folder` must be one you can write to, but {file.parent} is not: {error.strerror}. Set folder=OTHER."
        ) from error


def _compose(file: Path, name: str, folder: Path) -> RunConfig:
    """Compose and check what was written, and return it; take it away again where it breaks a rule."""
    from trainer.config.check import check_config
    from trainer.config.store import compose_config

    try:
        config = compose_config([f"hydra.searchpath=[file://{_absolute(folder)}]", f"experiment={name}"])
        check_config(config)
        return config
    except ConfigError:
        file.unlink()
        raise


def _defaults_text(model: NamedModel, recipe: str, objective: str) -> str:
    chosen = {"model": model.choice, "recipe": recipe, "objective": objective}
    return "\n".join(f"  - override /{group}: {option}" for group, option in chosen.items() if option)


def _model_text(wish: Wish, model: NamedModel) -> str:
    lines = [] if model.choice else ["kind: pretrained", f"path: {_quoted(model.path)}"]
    if wish.chat_template:
        lines.append(f"chat_template: {_quoted(_absolute(Path(wish.chat_template)))}")
    return "".join(f"{line}\n" for line in ["model:", *(f"  {line}" for line in lines)]) if lines else ""


def _source_text(name: str, source: Any, named: dict[str, str], notes: Sequence[str]) -> str:
    columns = {**named, **({"ignore": source.columns.ignore} if source.columns.ignore else {})}
    is_glob = not Path(source.path).expanduser().exists()
    path = source.path if is_glob and Path(source.path).is_absolute() else _absolute(Path(source.path))
    lines = [
        f"format: {source.format.value}",
        *(["as_chat: true"] if source.as_chat else []),
        *([f"learn: {{reasoning: {source.learn.reasoning.value}}}"] if source.learn != LearnConfig() else []),
        *([f"txt_documents: {source.txt_documents}"] if source.txt_documents != "file" else []),
        f"path: {_quoted(path)}",
    ]
    if columns:
        shown = ", ".join(f"{key}: {_quoted_all(value)}" for key, value in columns.items())
        lines.append(f"columns: {{{shown}}}")
    comments = [f"# {note}" for note in notes]
    return "\n".join([f"    {name}:", *(f"      {line}" for line in [*comments, *lines])])


def _quoted_all(value: Any) -> str:
    return f"[{', '.join(map(_quoted, value))}]" if isinstance(value, list) else _quoted(value)


def _quoted(text: str) -> str:
    """Return a text as YAML takes it: bare where that is safe. A `$` would begin a reference to another key."""
    is_plain = re.fullmatch(r"[A-Za-z_/][\w./-]*", text) and as_word(text) not in (
        "null",
        "true",
        "false",
        "yes",
        "no",
    )
    return text if is_plain else json.dumps(text.replace("${", "\\${"), ensure_ascii=False)


def _absolute(path: Path) -> str:
    return str(Path.cwd() / path.expanduser())


def _source_name(data: str) -> str:
    """Return a name for the source, from that of its file or folder."""
    stem = Path(data).name.split(".")[0]
    name = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_").lower()
    return name if name and not name[0].isdigit() else f"data_{name}".rstrip("_")
