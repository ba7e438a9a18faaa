"""Rules about what is left out of a source by what its text is like. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from trainer.config.data import Format, SourceConfig
from trainer.config.rule import Problem, must

SHARES = ("max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words", "max_repeated_lines")


def curate_problems(key: str, source: SourceConfig) -> Iterator[Problem]:
    """Yield every broken rule of the source whose configuration is at `key`."""
    rules, taken = source.curate, (Format.text, Format.completion, Format.chat)
    if rules.is_on and source.format not in taken:
        fix = "It looks at text; leave it out."
        yield must(f"{key}.curate", f"left out for format={source.format.value}", "set", fix)
    for name in SHARES:
        share = getattr(rules, name)
        if share is not None and not 0 <= share <= 1:
            yield must(f"{key}.curate.{name}", "in [0, 1], or null", share, "It is a share.")
    for field in dataclasses.fields(rules):
        value = getattr(rules, field.name)
        if (
            field.name.startswith(("min_", "max_"))
            and field.name not in SHARES
            and value is not None
            and value < 0
        ):
            yield must(f"{key}.curate.{field.name}", "0 or more, or null", value, "Leave it out.")
    for low, high in (("min_words", "max_words"), ("min_mean_word_chars", "max_mean_word_chars")):
        least, most = getattr(rules, low), getattr(rules, high)
        if least is not None and most is not None and most < least:
            yield must(f"{key}.curate.{high}", f"at least {low} ({least:g})", most, "Raise it.")
    if rules.near_duplicates is not None and not 0 < rules.near_duplicates <= 1:
        yield must(f"{key}.curate.near_duplicates", "in (0, 1], or null", rules.near_duplicates, "Set 0.8.")
    if rules.ngram < 1:
        yield must(f"{key}.curate.ngram", "at least 1", rules.ngram, "Set 13.")
    for file in rules.against:
        if not file.endswith((".jsonl", ".txt")):
            yield must(f"{key}.curate.against", "files of .jsonl or .txt", file, "Rename or convert it.")
