"""Rules of the section `synthetic`: of its values always, of what a verb needs where that is called. Pure."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

from trainer.config.check_generate import fits_vllm
from trainer.config.generate import VLLM_TEMPERATURES, GenerateConfig, SampleEngine
from trainer.config.rule import Problem, must, problem
from trainer.config.synthetic import (
    BUILT_IN,
    DistractorChoice,
    QuoteSource,
    RaftConfig,
    SampledRows,
    SampleVerbConfig,
    SyntheticConfig,
)

_SECTION = "synthetic"
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FIELDS = {
    "raft.prompt": (("documents", "question"), ()),
    "sample.instruction": (("prompt",), ()),
    "judge.question": (("prompt", "a", "b"), ("principle",)),
}
"""Names in braces of each text: those that it must have, and those that it may."""


def sampling(options: SyntheticConfig) -> GenerateConfig:
    """Return the options of the sampler."""
    return GenerateConfig(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        engine=options.engine,
        seed=options.seed,
    )


def synthetic_problems(options: SyntheticConfig) -> Iterator[Problem]:
    """Yield every broken rule of values, whichever verb reads them."""
    at_least = [
        ("max_rows", 1, "Leave it out."),
        ("seed", 0, "Set 0."),
        ("max_new_tokens", 1, "Set 512."),
        ("raft.num_distractors", 1, "Set 4."),
        ("raft.min_distractors", 1, "Leave it out."),
        ("raft.tries", 1, "Set 4."),
        ("raft.min_leak_chars", 0, "Set 4."),
        ("sample.num_answers", 1, "Set 8."),
        ("judge.min_margin", 0, "Set 0."),
        ("questions.chunk_chars", 100, "Set 2000."),
        ("questions.per_chunk", 1, "Set 1."),
    ]
    for key, lowest, fix in at_least:
        value = _value(options, key)
        if value is not None and not value >= lowest:
            yield must(f"{_SECTION}.{key}", f"at least {lowest}", value, fix)
    for key, fix in (
        ("raft.oracle_share", "Set 0.8."),
        ("sample.min_rate", "Set 0."),
        ("sample.max_rate", "Set 1."),
        ("questions.min_answerable", "Set 0.5."),
    ):
        if not 0 <= _value(options, key) <= 1:
            yield must(f"{_SECTION}.{key}", "in [0, 1]", _value(options, key), fix)
    for key, fix in (
        ("top_p", "Set 1.0, which is off."),
        ("raft.near_identical", "Set 0.8."),
        ("questions.near_identical", "Set 0.8."),
    ):
        if not 0 < _value(options, key) <= 1:
            yield must(f"{_SECTION}.{key}", "in (0, 1]", _value(options, key), fix)
    for key, fix in (("temperature", "Set 1."), ("sample.timeout_s", "Set 10.")):
        if not _value(options, key) > 0:
            yield must(f"{_SECTION}.{key}", "more than 0", _value(options, key), fix)
    if options.engine is SampleEngine.vllm and options.temperature > 0 and not fits_vllm(sampling(options)):
        rule = f"in [{VLLM_TEMPERATURES[0]}, {VLLM_TEMPERATURES[1]}] for vLLM"
        yield must(f"{_SECTION}.temperature", rule, options.temperature, f"Set {_SECTION}.temperature=1.")
    yield from _text_problems(options)
    yield from _raft_problems(options.raft)
    yield from _answer_problems(options.sample)


def needed_problems(options: SyntheticConfig, verb: str) -> Iterator[Problem]:
    """Yield what a verb needs and was not given."""
    if not options.input:
        rest = f"must be given, but is {_shown(options.input)} instead. Set {_SECTION}.input=ROWS.jsonl."
        yield problem(f"{_SECTION}.input", rest)
    if options.output is None:
        rest = f"must be given, but is null instead. Set {_SECTION}.output=MADE.jsonl."
        yield problem(f"{_SECTION}.output", rest)
    elif not options.output.endswith(".jsonl"):
        yield must(f"{_SECTION}.output", "the name of a .jsonl file", options.output, "Give it that ending.")
    if verb == "sample" and options.sample.verifier is None and options.sample.reward_model is None:
        rest = (
            f"must be given without {_SECTION}.sample.reward_model, but is null instead. Set one of "
            f"{', '.join(BUILT_IN)}, or MODULE:FUNCTION."
        )
        yield problem(f"{_SECTION}.sample.verifier", rest)
    if verb == "revise" and not options.revise.principles:
        key = f"{_SECTION}.revise.principles"
        yield problem(key, f"must be given, but is null instead. Set {key}=FILE, a principle a line.")


def _value(options: SyntheticConfig, key: str) -> float:
    found: object = options
    for name in key.split("."):
        found = getattr(found, name)
    return found  # type: ignore[return-value]


def _shown(value: str | None) -> str:
    return "null" if value is None else repr(value)


def _text_problems(options: SyntheticConfig) -> Iterator[Problem]:
    """Yield texts that lack a name in braces, or have one that nothing stands for."""
    for key, (needed, allowed) in _FIELDS.items():
        text = str(_value(options, key))
        rule = f"a text with {', '.join(f'{{{name}}}' for name in needed)}, and no other braces"
        try:
            found = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError:
            found = [""]
        if set(needed) - set(found) or set(found) - {*needed, *allowed}:
            yield must(f"{_SECTION}.{key}", rule, text, "Double braces that stand for themselves.")


def _raft_problems(raft: RaftConfig) -> Iterator[Problem]:
    key = f"{_SECTION}.raft"
    if raft.min_distractors is not None and raft.min_distractors > raft.num_distractors:
        rule = f"at most num_distractors ({raft.num_distractors})"
        yield must(f"{key}.min_distractors", rule, raft.min_distractors, "Lower it.")
    if (raft.distractors is DistractorChoice.given) != (raft.distractors_column is not None):
        is_given = raft.distractors is DistractorChoice.given
        rule = "the column of a list of documents" if is_given else "null"
        fix = f"Set {key}.distractors_column=COLUMN." if is_given else f"Set {key}.distractors=given."
        yield must(
            f"{key}.distractors_column",
            f"{rule} with distractors={raft.distractors.value}",
            raft.distractors_column,
            fix,
        )
    if raft.distractors is DistractorChoice.given and raft.corpus is not None:
        yield must(f"{key}.corpus", "null with distractors=given", raft.corpus, "Leave it out.")
    if raft.quote is QuoteSource.row and raft.reasoning_column is None:
        fix = f"Set {key}.reasoning_column=COLUMN, or {key}.quote=extract."
        yield must(f"{key}.reasoning_column", "a column with quote=row", None, fix)
    for name in ("quote_begin", "quote_end", "answer_mark"):
        if not getattr(raft, name).strip():
            yield must(f"{key}.{name}", "words", getattr(raft, name), "Leave it out.")
    if raft.quote_begin == raft.quote_end:
        yield must(f"{key}.quote_end", "another mark than quote_begin", raft.quote_end, "Leave both out.")


def _answer_problems(sample: SampleVerbConfig) -> Iterator[Problem]:
    key, verifier = f"{_SECTION}.sample", sample.verifier
    is_built_in = verifier in BUILT_IN
    if verifier is not None and not is_built_in and not _FUNCTION.fullmatch(verifier):
        rule = f"{', '.join(BUILT_IN)}, or MODULE:FUNCTION"
        yield must(f"{key}.verifier", rule, verifier, f"Set {key}.verifier=number, for example.")
    if verifier is not None and sample.reward_model is not None:
        yield must(f"{key}.verifier", "null with a reward_model", verifier, "Leave one of both out.")
    if verifier == "regex" and not sample.pattern:
        yield must(f"{key}.pattern", "a regular expression with verifier=regex", sample.pattern, "Give one.")
    if sample.pattern is not None and not is_built_in:
        rule = f"null unless verifier is one of {', '.join(BUILT_IN)}"
        yield must(f"{key}.pattern", rule, sample.pattern, "Leave it out.")
    elif sample.pattern is not None and (why := _why_no_pattern(sample.pattern, verifier != "regex")):
        yield must(f"{key}.pattern", why, sample.pattern, "Mend it.")
    if is_built_in and sample.reference_column is None and "{reference}" not in (sample.pattern or ""):
        if verifier != "regex":
            rule = f"a column with verifier={verifier}"
            yield must(f"{key}.reference_column", rule, None, f"Set {key}.reference_column=answer.")
    elif sample.reference_column is None and "{reference}" in (sample.pattern or ""):
        rule = "a column with {reference} in the pattern"
        yield must(f"{key}.reference_column", rule, None, f"Set {key}.reference_column=answer.")
    if sample.reward_model is not None and sample.write is SampledRows.rates:
        fix = f"Set {key}.write=best, or a verifier."
        yield must(f"{key}.write", "best or pairs with a reward_model, which passes nothing", "rates", fix)
    if sample.write is SampledRows.pairs and sample.num_answers == 1:
        yield must(f"{key}.num_answers", "at least 2 with write=pairs", 1, "Set 8.")
    if sample.min_rate > sample.max_rate:
        yield must(f"{key}.min_rate", f"at most max_rate ({sample.max_rate})", sample.min_rate, "Lower it.")


def _why_no_pattern(pattern: str, needs_group: bool) -> str | None:
    """Return what a pattern must be and is not; None for one that can be used."""
    try:
        compiled = re.compile(pattern.replace("{reference}", "x"))
    except re.error as error:
        return f"a regular expression ({error})"
    return "a regular expression with a group" if needs_group and not compiled.groups else None
