"""Config sections for the data: sources, cleaning, split, packing and the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.config.curate import CurateConfig
from trainer.config.learn import LearnConfig


class Format(Enum):
    """What a row of a source holds."""

    text = "text"
    """A document; every token is supervised."""
    completion = "completion"
    """A prompt and a completion, which alone is supervised."""
    chat = "chat"
    """A conversation, rendered by the chat template."""
    ids = "ids"
    """Token ids, with a mask or labels."""
    preference = "preference"
    """A chosen and a rejected answer to one prompt."""
    unpaired = "unpaired"
    """An answer to a prompt and whether it is desirable."""


ANSWERED = (Format.completion, Format.preference, Format.unpaired)
"""Formats of a prompt and what is said to it, which are rendered as chats if asked for."""


class Role(Enum):
    """What a source is for."""

    target = "target"
    """Learnt."""
    replay = "replay"
    """Older data against forgetting."""
    probe = "probe"
    """Only evaluated."""


class Packing(Enum):
    """How documents fill a pack of `data.seq_len` tokens."""

    concat = "concat"
    """Documents one after the other, cut where a pack ends."""
    best_fit = "best_fit"
    """Whole documents, as many as fit."""


class PackingMode(Enum):
    """Whether documents share a row of the model."""

    auto = "auto"
    """none where layers of the model carry something from one document to the next, or take no mask of pairs of tokens;
    else packed. Said at start."""
    packed = "packed"
    """A pack is one row, in which each document sees only itself; `packing` of a source says how they fill it."""
    none = "none"
    """A document is a row of its own. A pack holds as many of about one length as fit, and cuts none that fits."""


class LongDocuments(Enum):
    """What happens to a document longer than `data.seq_len` where it is not cut at the end of a pack."""

    error = "error"
    """Stop, and name the longest."""
    drop = "drop"
    """Leave it out, and count it."""
    split = "split"
    """Cut it into pieces of a pack."""


class TokenValue(Enum):
    """A number that stores keep for every token, by name."""

    label = "label"
    """1 where the answer of format=unpaired is desirable and -1 where it is not; 0 for tokens of other sources."""
    margin = "margin"
    """By how much the chosen answer of a pair has to be ahead of the rejected one, as rows say it in `margin`; 0 where
    there is no such column."""
    weight = "weight"
    """How much of a token's loss counts, as rows and turns say it in `weight`: a row's times its turn's, 1 where
    neither says one. A row or turn of weight 0 is not learnt. Where duplicates are dropped, the first one's stands."""


@dataclass
class CleanConfig:
    """Cleaning of one source. Every option prints how many documents it touched."""

    normalize_unicode: bool = False
    """Apply NFC normalisation and drop control characters other than newline and tab."""
    strip: bool = True
    """Strip white space at both ends of a text."""
    min_chars: int = 1
    """Drop documents with fewer characters (text: the text; chat: all contents together)."""
    max_chars: int | None = None
    """Drop documents with more characters."""
    deduplicate: bool = False
    """Drop exact duplicates (same content after cleaning), within the source."""


@dataclass
class ColumnsConfig:
    """Which column of a row holds what. Only the columns of the source's format are read.

    Where rows have no column of a default name, that of a known layout is taken and told (ShareGPT, Alpaca, ...).
    An optional column that is null is taken by its usual name and told. Any other column that would change what is
    learnt (system_prompt, loss_mask, weight, history, ...) is refused until it is named here or under `ignore`.
    """

    text: str = "text"
    """format=text: the document."""
    prompt: str = "prompt"
    """format=completion: the part that is not supervised; with as_chat=true a list of turns too. format=preference and
    unpaired: the same, or {messages, tools}; rows may go without one where their answers are whole conversations."""
    completion: str = "completion"
    """format=completion and unpaired: the supervised part; with as_chat=true a list of turns too. Rows without one are
    dropped."""
    input: str | None = None
    """format=completion, preference and unpaired: text put after the prompt and a blank line, as Alpaca's `input`. null
    takes `input` or `context` beside `instruction`."""
    messages: str = "messages"
    """format=chat: a list of {role, content} (or {from, value})."""
    tools: str | None = None
    """format=chat, or another with as_chat=true: a list of tool schemas, or of their JSON strings, handed to the chat
    template. null takes `tools`."""
    system: str | None = None
    """format=completion, chat, preference or unpaired: a system prompt put before the conversation. null takes `system`
    or `system_prompt`."""
    input_ids: str = "input_ids"
    """format=ids: a list of token ids."""
    loss_mask: str | None = None
    """format=ids: a list of 0/1 of the same length; 1 is supervised. null takes `loss_mask`, `completion_mask` or
    `assistant_masks`; without one, and without labels, every token is supervised."""
    labels: str | None = None
    """format=ids: a list of the same length: the token's id where it is supervised, -100 where it is not. null takes
    `labels`."""
    attention_mask: str | None = None
    """format=ids: a list of 0/1 of the same length; the ids at both ends where it is 0 are padding and are cut off.
    null takes `attention_mask`."""
    chosen: str = "chosen"
    """format=preference: the better answer: a text, with as_chat=true also a turn or a list of turns. One that begins
    with the prompt, as where there is no column of prompts, is a whole conversation."""
    rejected: str = "rejected"
    """format=preference: the worse answer, as the better one."""
    completions: str | None = None
    """format=preference: a list of two {rank, completion} in place of chosen and rejected; the lower rank is better."""
    label: str = "label"
    """format=unpaired: true where the completion is desirable, false where it is not."""
    margin: str | None = None
    """format=preference, with data.values=[margin]: a number, by how much the chosen answer is better. null takes
    `margin`."""
    weight: str | None = None
    """With data.values=[weight]: a number of at least 0 that multiplies the weights of the row's turns; rows of
    weight 0 are dropped. null takes `weight`, `sample_weight` or `loss_weight`."""
    ignore: list[str] = field(default_factory=list)
    """Columns that are left unread on purpose, though their names say that they would change what is learnt."""


@dataclass
class SourceConfig:
    """One source of documents."""

    role: Role = Role.target
    """`target` is learnt, `replay` is older data against forgetting, `probe` is only evaluated."""
    weight: float | None = None
    """Share among the sources of its role, in supervised tokens, on any scale. null for all of a role: they are
    drawn as one pool, every pack once an epoch."""
    max_epochs: float | None = None
    """Refuse a run that passes over this source more often; null allows any number and prints it."""
    path: str | None = None
    """File, folder or glob (jsonl, json, parquet, arrow, csv, tsv, txt; .gz, .bz2, .xz and .zst of the text kinds),
    here or behind an address that fsspec knows (s3://, gs://, hf://, https://, ...); a folder that `save_to_disk` of
    the library `datasets` wrote; Megatron's .bin with its .idx. Of a folder that names splits, only `split` is read."""
    dataset: str | None = None
    """Hugging Face dataset name; give either this or `path`."""
    subset: str | None = None
    """Configuration name of the Hugging Face dataset, or of a folder whose README lists configs."""
    split: str = "train"
    """Split that is read, of the Hugging Face dataset or of a folder whose README or file names tell splits."""
    revision: str | None = None
    """Git revision of the Hugging Face dataset; quote it."""
    tokenizer: str | None = None
    """format=ids: the tokenizer that made the ids, a Hugging Face name or a folder. Every token of it must have the
    same id in this run's. Megatron files need it; null for others says that the ids are this run's tokenizer's."""
    format: Format = Format.text
    """What a row holds."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Column mapping."""
    as_chat: bool = False
    """format=completion, preference or unpaired: render prompt and answer with the chat template; texts are turns."""
    txt_documents: str = "file"
    """txt files: `file` (one document a file), `line`, or `paragraph` (split at blank lines)."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """format=chat, or another with as_chat=true: what is learnt of a conversation."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """Cleaning options."""
    curate: CurateConfig = field(default_factory=CurateConfig)
    """What is left out by what its text is like: quality, near-duplicates, evaluation sets."""
    packing: Packing | None = None
    """Packing of this source; default: concat for text and ids, best_fit for chat and completion."""
    long_documents: LongDocuments | None = None
    """best_fit, and data.packing=none: what happens to documents longer than `data.seq_len`. null is error, and split
    for text and ids with data.packing=none, which concat would have cut as well."""
    max_documents: int | None = None
    """Read at most so many documents; for trials."""
    synthetic: bool | None = None
    """Whether models wrote the rows. null: where one of the first rows has a `provenance` that names a model, as
    those of `palimpsest data` commands have. Such a source is learnt only after people looked at a sample of it."""
    min_acceptance: float | None = 0.8
    """synthetic: the lower end of the 95 % interval of the share of rows that people accept (`palimpsest data review`)
    must be at least this, else `prepare` and `train` refuse. null: take them without. Range: [0, 1]."""

    @property
    def holds_preferences(self) -> bool:
        """Tell whether rows hold pairs, or answers with labels."""
        return self.format in (Format.preference, Format.unpaired)

    @property
    def holds_chats(self) -> bool:
        """Tell whether rows are rendered with the chat template."""
        return self.format is Format.chat or (self.format in ANSWERED and self.as_chat)


@dataclass
class DataConfig:
    """All sources and how they become packs."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources by name; the name is used in logs and reports."""
    seq_len: int = 2048
    """Tokens in a pack. Range: 8 to the model's context length."""
    packing: PackingMode = PackingMode.auto
    """Whether documents share rows. `none` trains any model; `packed` fills a step better, and is
    refused where documents would see each other."""
    share_prompts: bool | None = None
    """format=preference: whether a pack holds the prompt of a pair once, with both answers behind it that do not see
    each other, so that more pairs fit. null takes true where the model's attention can be told of it; said at start.
    false makes two documents of a pair. What is learnt is the same."""
    validation_frac: float = 0.02
    """Share of documents held out, chosen by a hash of the document. Range: [0, 0.5]."""
    max_validation_packs: int = 64
    """At most so many held-out packs a source are evaluated; the first ones, so they never move."""
    add_eos: bool = True
    """format=text and completion: end every document with EOS."""
    cache_dir: str = "~/.cache/palimpsest"
    """Folder of the token stores and of made models."""
    num_workers: int = 0
    """Processes that tokenise; 0 means all cores."""
    values: list[TokenValue] = field(default_factory=list)
    """Numbers of tokens that the stores of all sources keep beside what is supervised; those that the objective reads.
    Without `weight`, turns say 0 or 1 only, and a column of weights is refused."""
    shuffle: bool = True
    """Permute the packs of every epoch by the seed. Off keeps the order of the files."""
