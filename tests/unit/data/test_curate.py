"""Documents are left out by what their text is like: rules of thumb, near-duplicates, evaluation sets. Each is told."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.helpers.tokenizers import load_saved, make_tokenizer, save_tokenizer
from trainer.config.check_curate import curate_problems
from trainer.config.curate import Contaminated, CurateConfig
from trainer.config.data import DataConfig, Format, SourceConfig
from trainer.data.prepare import prepare
from trainer.data.rows import language
from trainer.data.rows.contaminated import find_overlap, read_evaluation
from trainer.data.rows.minhash import NUM_HASHES, NearDuplicates, rows_of_band, signature_of
from trainer.data.rows.quality import refuse_low_quality, text_of
from trainer.data.store.prepared import shaping_options
from trainer.data.store.store import Store
from trainer.data.types import ChatDocument, CompletionDocument, IdsDocument, RowDropped
from trainer.errors import DataError

GOPHER = CurateConfig(
    min_words=5,
    max_words=40,
    min_mean_word_chars=3,
    max_mean_word_chars=10,
    max_symbols_per_word=0.1,
    max_bullet_lines=0.9,
    max_ellipsis_lines=0.3,
    min_alphabetic_words=0.8,
    min_stop_words=2,
    max_repeated_lines=0.3,
)
GOOD = "The weather of that town is good and the people have much to say of it."


@pytest.mark.parametrize(
    ("text", "cause", "measured"),
    [
        (GOOD, "", ""),
        ("too few words here", "num_words", "4, under 5"),
        ("the of " * 21, "num_words", "42, over 40"),
        ("a b c d the of", "word_chars", "1.5, under 3"),  # 4 x 1 + 3 + 2 characters in 6 words
        (
            "internationalisation and the incomprehensibilities of characterisations",
            "word_chars",
            "11, over 10",
        ),
        ("#tag #tag the words of tags", "symbols", "0.333, over 0.1"),
        ("well... the words\u2026 of people here", "symbols", "0.333, over 0.1"),
        ("- the first of them\n- the second of them", "bullet_lines", "1, over 0.9"),
        (
            "the first of them and more to see here...\nthe second of them",
            "ellipsis_lines",
            "0.5, over",
        ),
        ("the 1234 of 5678 9012 3456", "alphabetic_words", "0.333, under 0.8"),
        ("no words among those that matter much here", "stop_words", "1, under 2"),
        ("the words of one\nthe words of one\nthe words of two", "repeated_lines", "0.333, over 0.3"),
    ],
)
def test_a_rule_names_what_it_measured(text: str, cause: str, measured: str) -> None:
    if not cause:
        refuse_low_quality(text, GOPHER)
        return
    with pytest.raises(RowDropped) as found:
        refuse_low_quality(text, GOPHER)
    assert found.value.cause == cause and found.value.shown.startswith(measured)
    refuse_low_quality(text, CurateConfig())


def test_the_text_of_a_document_is_all_that_is_said_in_it() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "b"},
    ]
    assert text_of(ChatDocument(turns)) == "a\nb"
    assert text_of(CompletionDocument("a", "b")) == "a\nb" and text_of(IdsDocument([1])) == ""


def words(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh", k=6)) for _ in range(count)]


def jaccard(one: list[str], other: list[str]) -> float:
    runs = [{tuple(text[at : at + 5]) for at in range(len(text) - 4)} for text in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


@pytest.mark.parametrize("changed", [0, 10, 30, 100])
def test_signatures_estimate_the_similarity_of_sets_of_runs(changed: int) -> None:
    one = words(400, seed=1)
    other = one[: 400 - changed] + words(changed, seed=2)
    first, second = signature_of(" ".join(one)), signature_of(" ".join(other).upper())
    exact = jaccard(one, other)
    # Four standard errors of a share of 120 draws.
    room = 4 * np.sqrt(exact * (1 - exact) / NUM_HASHES) + 1e-9
    assert abs(float(np.mean(first == second)) - exact) <= room


def test_a_long_text_has_the_signature_of_its_runs_however_they_are_cut() -> None:
    many = words(9_000, seed=3)
    halves = [signature_of(" ".join(part)) for part in (many[:4_504], many[4_500:])]
    assert (signature_of(" ".join(many)) == np.minimum(*halves)).all()
    assert signature_of("").shape == (NUM_HASHES,) and (signature_of("a b") == signature_of("A  b")).all()


@pytest.mark.parametrize(
    ("threshold", "rows"), [(1.0, 120), (0.8, 6), (0.7, 4), (0.5, 3), (0.2, 1), (0.01, 1)]
)
def test_bands_are_as_long_as_lets_99_of_100_pairs_be_found(threshold: float, rows: int) -> None:
    """At 0.8: (1 - 0.8^6)^20 = 0.0023, and with 8 values a band (1 - 0.8^8)^15 = 0.063."""
    assert rows_of_band(threshold) == rows


def test_a_low_similarity_finds_its_pairs() -> None:
    """Of pairs at 0.6 bands of six values, which are right for 0.8, miss (1 - 0.6^6)^20 = 38 of 100."""
    found = 0
    for seed in range(50):
        near, one = NearDuplicates(0.5), words(200, seed=seed)
        other = [*one[:150], *words(50, seed=1_000 + seed)]
        assert 0.58 < jaccard(one, other) < 0.62
        assert near.find(signature_of(" ".join(one)), "first") is None
        found += near.find(signature_of(" ".join(other)), "second") is not None
    assert found >= 48


def test_the_nearest_of_those_kept_is_named() -> None:
    near, one = NearDuplicates(0.8), words(300, seed=4)
    assert near.find(signature_of(" ".join(one)), "first") is None
    assert near.find(signature_of(" ".join(words(300, seed=5))), "second") is None
    found = near.find(signature_of(" ".join([*one[:290], *words(10, seed=6)])), "third")
    assert found is not None and found[0] == "first" and 0.8 <= found[1] < 1
    assert NearDuplicates(1.0).find(signature_of("x"), "a") is None


def test_pairs_of_08_are_nearly_always_found() -> None:
    """Of 60 pairs at about 0.85 with a threshold of 0.7, a band of six values is equal in all but one of thousands."""
    found = 0
    for seed in range(60):
        near, one = NearDuplicates(0.7), words(200, seed=seed)
        near.find(signature_of(" ".join(one)), "a")
        found += (
            near.find(signature_of(" ".join([*one[:184], *words(16, seed=1_000 + seed)])), "b") is not None
        )
    assert found >= 59


QUESTION = "What is the capital of the country whose king built the tower in the year one"


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join((row if file.suffix == ".txt" else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def test_words_in_a_row_are_found_whatever_their_case_and_punctuation(tmp_path: Path) -> None:
    file = write(tmp_path / "eval.jsonl", [{"q": QUESTION, "choices": ["short", "one"]}])
    shared = QUESTION.upper().replace(" ", ",  ")
    found = find_overlap(f"Before. {shared}! After.", (file,), 13)
    assert (
        found == "'what is the capital of the country whose king built the tower in' stands in eval.jsonl too"
    )
    twelve = " ".join(QUESTION.split()[:12])
    assert find_overlap(f"{twelve} and others", (file,), 13) is None
    assert find_overlap(f"{twelve} and others", (file,), 12) is not None
    read = read_evaluation(file, 13)
    assert (read.num_texts, read.num_short) == (3, 2)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.txt", None, "must name files that can be read"),
        ("empty.txt", b"\n", "must name sets with texts"),
        ("bytes.txt", b"\xff\xfe", "must name UTF-8 files"),
        ("broken.jsonl", b'{"a": 1}\n{', "broken.jsonl, line 2 must be JSON"),
    ],
)
def test_an_evaluation_set_that_is_none_is_told(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_evaluation(str(tmp_path / name), 13)


ONE = words(200, seed=7)
TEXTS = [
    " ".join(ONE),
    "few",
    " ".join([*ONE[:195], *words(5, seed=8)]),
    f"{' '.join(words(20, seed=9))} {QUESTION}",
    " ".join(words(60, seed=10)),
]


def run(tmp_path: Path, curate: CurateConfig, num_workers: int = 1) -> tuple[Store, str]:
    path = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    source = SourceConfig(path=path, curate=curate)
    cache = tmp_path / f"cache{num_workers}"
    data = DataConfig({"s": source}, 64, cache_dir=str(cache), num_workers=num_workers, validation_frac=0.0)
    tokenizer, shown = make_tokenizer(), io.StringIO()
    from functools import partial

    make = partial(load_saved, save_tokenizer(tmp_path / "tok", tokenizer), tokenizer.digest)
    store = prepare(data, tokenizer, make, None, Console(file=shown, width=2000))["s"]
    return store, shown.getvalue()


def test_prepare_counts_and_shows_what_it_leaves_out(tmp_path: Path) -> None:
    file = write(tmp_path / "eval.txt", [QUESTION, "short one"])
    curate = CurateConfig(min_words=2, near_duplicates=0.8, against=[file], contaminated=Contaminated.drop)
    store, shown = run(tmp_path, curate)
    assert store.train.num_documents == 2
    counts = store.meta["counts"]
    assert (counts["num_words"], counts["near_duplicates"], counts["contaminated"]) == (1, 1, 1)
    assert (
        "1 row of too few or too many words left out, such as" in shown
        and "line 2 (1, under 2: 'few')" in shown
    )
    assert "1 row that are near-duplicates of another left out" in shown
    assert "line 3 (0.9" in shown and "texts.jsonl, line 1)" in shown
    assert (
        "line 4 ('what is the capital of the country whose king built the tower in' stands in eval.txt too)"
        in shown
    )
    assert "compared with 2 texts of eval.txt by rows of 13 words; 1 of them are shorter" in shown


def test_contaminated_documents_are_learnt_and_told_unless_said_otherwise(tmp_path: Path) -> None:
    file = write(tmp_path / "eval.txt", [QUESTION])
    store, shown = run(tmp_path, CurateConfig(against=[file]))
    assert store.train.num_documents == 5 and store.meta["counts"]["contaminated_kept"] == 1
    assert "learnt all the same, such as" in shown and "left out" not in shown


def test_nothing_is_looked_at_by_itself(tmp_path: Path) -> None:
    store, shown = run(tmp_path, CurateConfig())
    assert store.train.num_documents == 5 and "left out" not in shown


def test_stores_are_named_by_what_is_left_out_and_by_what_evaluation_sets_hold(tmp_path: Path) -> None:
    file = tmp_path / "eval.txt"
    write(file, [QUESTION])
    data = DataConfig()

    def named(curate: CurateConfig) -> Any:
        return shaping_options(SourceConfig(path="x", curate=curate), data).get("curate")

    assert named(CurateConfig()) is None
    before = named(CurateConfig(against=[str(file)]))
    write(file, [QUESTION, "another"])
    assert before != named(CurateConfig(against=[str(file)]))
    assert named(CurateConfig(min_words=5)) != named(CurateConfig(min_words=6))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"max_bullet_lines": 1.5}, "max_bullet_lines"),
        ({"min_words": -1}, "min_words"),
        ({"min_words": 9, "max_words": 3}, "max_words"),
        ({"near_duplicates": 0.0}, "near_duplicates"),
        ({"ngram": 0}, "ngram"),
        ({"against": ["a.parquet"]}, "against"),
    ],
)
def test_broken_rules_name_their_key(changes: dict[str, Any], key: str) -> None:
    curate = dataclasses.replace(CurateConfig(), **changes)
    found = [one.key for one in curate_problems("data.sources.s", SourceConfig(curate=curate))]
    assert found == [f"data.sources.s.curate.{key}"]
    pairs = SourceConfig(format=Format.preference, curate=CurateConfig(min_words=2))
    assert [one.key for one in curate_problems("s", pairs)] == ["s.curate"]


def test_texts_of_other_languages_are_left_out_and_unknown_codes_told(
    tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("py3langid", reason="pip install 'palimpsest-trainer[language]'")
    german = "Das Wetter in dieser Stadt ist heute sehr schlecht, und die Leute bleiben deshalb zu Hause."
    english = "The weather in this town is very bad today, and therefore people stay at home with a book."
    monkeypatch.setitem(globals(), "TEXTS", [german, english])
    store, shown = run(tmp_path, CurateConfig(languages=["en"]))
    assert store.train.num_documents == 1 and store.meta["counts"]["language"] == 1
    assert "1 row of another language left out, such as" in shown and "line 1 (de, 1.00: 'Das Wetter" in shown
    with pytest.raises(
        DataError, match=r"`data.sources.s.curate.languages` must be codes .* 'english' instead"
    ):
        run(tmp_path, CurateConfig(languages=["en", "english"]))


def test_languages_without_the_package_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language._identifier.cache_clear()
    with pytest.raises(DataError, match=r"must be empty without py3langid, .*palimpsest-trainer\[language\]"):
        run(tmp_path, CurateConfig(languages=["en"]))
