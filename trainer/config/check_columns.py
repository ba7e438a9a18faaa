"""Rules about the columns of a source, and about what is read of it. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from trainer.config.address import has_keys, shown_address
from trainer.config.data import ANSWERED, ColumnsConfig, Format, SourceConfig
from trainer.config.paths import is_address
from trainer.config.reference import EnvText
from trainer.config.rule import Problem, must

NAMED = {
    Format.text: ("text",),
    Format.completion: ("prompt", "completion"),
    Format.chat: ("messages",),
    Format.ids: ("input_ids",),
    Format.preference: ("prompt", "chosen", "rejected"),
    Format.unpaired: ("prompt", "completion", "label"),
}
"""Columns that a format reads, whether or not every row has them, and that have usual names."""
PASSWORD = re.compile(r"://[^/@?]*:[^/@?]*@")
SIGNATURE = re.compile(
    r"[?&](x-amz-signature|x-goog-signature|signature|sig|token|access_token)=", re.IGNORECASE
)
OPTIONAL = {
    "tools": (Format.chat, *ANSWERED),
    "system": (Format.chat, *ANSWERED),
    "completions": (Format.preference,),
    "margin": (Format.preference,),
    "input": ANSWERED,
    "loss_mask": (Format.ids,),
    "labels": (Format.ids,),
    "attention_mask": (Format.ids,),
}
"""Optional columns, and the formats that read them."""


def column_problems(key: str, source: SourceConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    yield from _unread_problems(key, source)
    yield from _double_problems(key, source)
    if source.max_documents is not None and source.max_documents < 1:
        yield must(f"{key}.max_documents", "at least 1, or null", source.max_documents, "Leave it out.")
    if source.path == "":
        yield must(f"{key}.path", "a file, a folder or a glob", source.path, "Name one; '.' is this folder.")
    if source.path is not None and source.revision is not None:
        rule = "null for local files"
        yield must(f"{key}.revision", rule, source.revision, "Remove it.")
    if source.tokenizer is not None and source.format is not Format.ids:
        rule = "null unless format=ids, because text is tokenised by this run's tokenizer"
        yield must(f"{key}.tokenizer", rule, source.tokenizer, f"Remove it, or set {key}.format=ids.")
    if source.path is not None and is_address(source.path):
        yield from _address_problems(f"{key}.path", source.path)


def _unread_problems(key: str, source: SourceConfig) -> Iterator[Problem]:
    """Yield the columns that are named and that the format does not read."""
    columns, format_ = source.columns, source.format
    for slot in {slot: None for slots in NAMED.values() for slot in slots}:
        is_read, usual = slot in NAMED[format_], getattr(ColumnsConfig, slot)
        if not is_read and (column := getattr(columns, slot)) != usual:
            rule = f"'{usual}' for format={format_.value}, which does not read it"
            yield must(f"{key}.columns.{slot}", rule, column, "Remove it, or set the source's format.")
    for slot, formats in OPTIONAL.items():
        if (column := getattr(columns, slot)) is not None and format_ not in formats:
            rule = f"null for format={format_.value}, which does not read it"
            yield must(f"{key}.columns.{slot}", rule, column, "Remove it.")
    if columns.tools is not None and format_ in ANSWERED and not source.as_chat:
        rule = "null unless a chat is rendered"
        yield must(f"{key}.columns.tools", rule, columns.tools, f"Remove it, or set {key}.as_chat=true.")


def _double_problems(key: str, source: SourceConfig) -> Iterator[Problem]:
    """Yield the columns that are named twice, or named and ignored."""
    columns = source.columns
    named = {slot: getattr(columns, slot) for slot in (*NAMED[source.format], *OPTIONAL, "weight")}
    given = [column for column in named.values() if column is not None]
    for column, count in Counter(given).items():
        if count > 1:
            slots = [slot for slot, name in named.items() if name == column]
            yield must(
                f"{key}.columns.{slots[1]}", f"another column than {slots[0]}", column, "Name each once."
            )
        if column in columns.ignore:
            rule = "a list without the columns that are read"
            yield must(f"{key}.columns.ignore", rule, columns.ignore, f"Leave out {column}.")


def _address_problems(key: str, address: str) -> Iterator[Problem]:
    if "::" in address:
        rule = "one address, not one inside of another"
        yield must(key, rule, address, "Unpack the files, or name them where they lie.")
    if re.match("(file|local)://(?!/)", address):
        rule = "an address from the root"
        yield must(key, rule, address, "Write file:///FOLDER/FILE, or the path without file://.")
    if has_keys(address):
        # Also by ${oc.env:...}: what reads stores takes them for a part of the bucket's name.
        rule = "an address without the keys of a store"
        fix = "Give them by the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        yield must(key, rule, shown_address(address), f"{fix}GOOGLE_APPLICATION_CREDENTIALS.")
        return
    is_named = isinstance(address, EnvText) and shown_address(address.raw) == address.raw
    if PASSWORD.search(address) and not is_named:
        rule = "an address without a password, because the configuration is kept and printed"
        shown = PASSWORD.sub("://...@", address)
        yield must(key, rule, shown, "Give it by the environment, for example AWS_SECRET_ACCESS_KEY.")
    if SIGNATURE.search(address):
        rule = "an address without a signature or token, because the configuration is kept and printed"
        yield must(key, rule, address.partition("?")[0] + "?...", "Name the files by s3:// or gs://.")
