from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.helpers import templates
from tests.helpers.tokenizers import load_saved, make_tokenizer, save_tokenizer
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.config.data import (
    CleanConfig,
    ColumnsConfig,
    DataConfig,
    Format,
    LongDocuments,
    Packing,
    PackingMode,
    Role,
    SourceConfig,
    TokenValue,
)
from trainer.data import prepare as prepare_module
from trainer.data.prepare import prepare
from trainer.data.store.prepared import RENDERING_VERSION, find_prepared, find_store, lock_file
from trainer.data.store.store import SplitStore, Store, open_store
from trainer.errors import DataError
from trainer.model.tokenizer import Tokenizer
from trainer.runtime.lock import one_at_a_time

GSM8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "gsm8k_train.jsonl"
TURNS = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]
ROOT = Path(__file__).parents[3]


def write_rows(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def make_data(tmp_path: Path, source: SourceConfig, **options: Any) -> DataConfig:
    options = {"seq_len": 64, "num_workers": 1, "validation_frac": 0.0, **options}
    return DataConfig(sources={"s": source}, cache_dir=str(tmp_path / "cache"), **options)


def run(data: DataConfig, tokenizer: Tokenizer, vocab_size: int | None = None, show: Any = None) -> Store:
    console = Console(file=show or io.StringIO(), width=200)
    return prepare(data, tokenizer, lambda: tokenizer, vocab_size, console)["s"]


def texts_source(tmp_path: Path, texts: list[str], **options: Any) -> SourceConfig:
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    return SourceConfig(path=path, **options)


def open_prepared(*source: Any) -> Store:
    return open_store(find_prepared(*source))


def decode_packs(split: SplitStore, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(split.pack(i).tokens.tolist()) for i in range(split.num_packs)]


def leftovers(tmp_path: Path) -> list[str]:
    return [p.name for p in (tmp_path / "cache").rglob("*") if ".tmp" in p.name]


def stores(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "stores").glob("[!.]*"))


def test_texts_are_joined_in_order_with_one_bos_and_one_eos_each(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    data = make_data(tmp_path, texts_source(tmp_path, ["one", "<s>two</s>"]), seq_len=8)
    store = run(data, tokenizer)
    assert decode_packs(store.train, tokenizer) == ["<s>one</s><s>tw", "o</s>"]
    assert store.train.pack(0).lengths == [5, 3] and store.train.pack(0).supervised.all()
    assert store.train.pack_targets.tolist() == [6, 1] and store.train.num_targets == 7
    assert store.train.num_tokens == 10 and store.validation.num_packs == 0


def test_add_eos_off_adds_none(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    data = make_data(tmp_path, texts_source(tmp_path, ["one", "two"]), add_eos=False)
    assert decode_packs(run(data, tokenizer).train, tokenizer) == ["onetwo"]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_of_a_completion_only_the_answer_and_its_eos_are_supervised(adds_bos: bool, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    path = write_rows(tmp_path / "c.jsonl", [{"prompt": "2+2=", "completion": " 4"}])
    data = make_data(tmp_path, SourceConfig(path=path, format=Format.completion))
    pack = run(data, tokenizer).train.pack(0)
    assert tokenizer.decode(pack.tokens.tolist()) == "<s>" * adds_bos + "2+2= 4</s>"
    assert tokenizer.decode(pack.tokens[pack.supervised].tolist()) == " 4</s>"


def test_chats_are_packed_whole_and_get_no_further_eos(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(templates.LLAMA3, adds_bos=True)
    path = write_rows(tmp_path / "c.jsonl", [{"messages": TURNS}] * 3)
    store = run(make_data(tmp_path, SourceConfig(path=path, format=Format.chat)), tokenizer)
    rendered = tokenizer.render_chat(TURNS)
    assert "".join(decode_packs(store.train, tokenizer)) == rendered * 3
    assert store.train.pack(0).lengths == [store.meta["longest"]] * 2
    assert store.train.num_targets == 3 * len("b.!")


def test_ids_are_taken_as_they_are_with_their_mask(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 70_000, 7], "m": [0, 1, 1]}, {"input_ids": [1], "m": [1]}]
    path = write_rows(tmp_path / "i.jsonl", rows)
    source = SourceConfig(path=path, format=Format.ids, columns=ColumnsConfig(loss_mask="m"))
    pack = run(make_data(tmp_path, source), make_tokenizer()).train.pack(0)
    assert pack.tokens.tolist() == [5, 70_000, 7, 1] and pack.lengths == [3, 1]
    assert pack.supervised.tolist() == [False, True, True, True]


def test_held_out_and_training_documents_together_are_all_documents(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    texts = [f"document {i}" for i in range(300)]
    data = make_data(tmp_path, texts_source(tmp_path, texts), validation_frac=0.2)
    store = run(data, tokenizer)
    train, held_out = (decode_packs(s, tokenizer) for s in (store.train, store.validation))
    found = "".join(train).split("</s>")[:-1], "".join(held_out).split("</s>")[:-1]
    assert sorted(found[0] + found[1]) == sorted(texts)
    assert 30 < len(found[1]) < 90
    assert found[1] == [t for t in texts if t in found[1]]


def test_a_dataset_by_name_is_read_like_a_file(tmp_path: Path) -> None:
    """A folder stands for a hub name here: `datasets` resolves both."""
    (tmp_path / "hub").mkdir()
    write_rows(tmp_path / "hub" / "train.jsonl", [{"text": t, "n": 1} for t in ("one", "two", "three")])
    source = SourceConfig(dataset=str(tmp_path / "hub"), max_documents=2)
    tokenizer = make_tokenizer()
    data = make_data(tmp_path, source)
    digest = run(data, tokenizer).digest
    assert decode_packs(open_prepared("s", source, data, tokenizer).train, tokenizer) == ["one</s>two</s>"]
    assert run(data, tokenizer).digest == digest and leftovers(tmp_path) == []


def test_a_dataset_that_cannot_be_had_is_named_with_its_key(tmp_path: Path) -> None:
    source = SourceConfig(dataset=str(tmp_path / "missing"), subset="x")
    check_refused(tmp_path, source, make_tokenizer(), "`data.sources.s.dataset`", "subset x")


def test_cleaning_is_counted_in_the_report(tmp_path: Path) -> None:
    clean = CleanConfig(min_chars=2, deduplicate=True)
    source = texts_source(tmp_path, ["same", " same ", "x", "other", "", "f[red]e[/red]e"], clean=clean)
    shown = io.StringIO()
    tokenizer = make_tokenizer()
    store = run(make_data(tmp_path, source), tokenizer, show=shown)
    assert decode_packs(store.train, tokenizer) == ["same</s>other</s>f[red]e[/red]e</s>"]
    assert "2 too short, 1 duplicates; 1 stripped" in shown.getvalue()
    assert "\u27e6f[red]e[/red]e</s>\u27e7" in shown.getvalue()


def test_a_second_run_finds_the_store_and_reads_nothing(tmp_path: Path) -> None:
    data = make_data(tmp_path, texts_source(tmp_path, ["one"]))
    first = run(data, make_tokenizer())
    shown = io.StringIO()
    assert run(data, make_tokenizer(), show=shown).digest == first.digest
    assert "unchanged" in shown.getvalue() and len(stores(tmp_path)) == 1


def test_a_touched_file_gives_the_same_store_and_a_changed_one_another(tmp_path: Path) -> None:
    data = make_data(tmp_path, texts_source(tmp_path, ["one"]))
    first = run(data, make_tokenizer())
    os.utime(tmp_path / "texts.jsonl", (1, 1))
    assert find_store("s", data.sources["s"], data, make_tokenizer()) is None
    assert open_prepared("s", data.sources["s"], data, make_tokenizer()).digest == first.digest, (
        "by its content"
    )
    assert run(data, make_tokenizer()).digest == first.digest
    texts_source(tmp_path, ["two"])
    with pytest.raises(DataError, match="no token store for it with these options and files"):
        open_prepared("s", data.sources["s"], data, make_tokenizer())
    assert run(data, make_tokenizer()).digest != first.digest


def test_every_option_that_shapes_a_store_changes_its_digest(tmp_path: Path) -> None:
    source = texts_source(tmp_path, ["one", "two"])
    digests = [
        run(make_data(tmp_path, source, **o), make_tokenizer()).digest
        for o in (
            {},
            {"seq_len": 32},
            {"add_eos": False},
            {"validation_frac": 0.5},
        )
    ]
    source.packing = Packing.best_fit
    digests.append(run(make_data(tmp_path, source), make_tokenizer()).digest)
    source.clean = CleanConfig(strip=False)
    digests.append(run(make_data(tmp_path, source), make_tokenizer()).digest)
    digests.append(run(make_data(tmp_path, source), make_tokenizer(adds_bos=True)).digest)
    assert len(set(digests)) == 7


def test_other_rules_of_rendering_make_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure: after an upgrade, runs read tokens and marks that earlier rules made."""
    data, tokenizer = make_data(tmp_path, texts_source(tmp_path, ["one", "two"])), make_tokenizer()
    first = run(data, tokenizer)
    found = find_store("s", data.sources["s"], data, tokenizer)
    assert found is not None and found.name == first.digest
    monkeypatch.setattr("trainer.data.store.prepared.RENDERING_VERSION", RENDERING_VERSION + 1)
    assert find_store("s", data.sources["s"], data, tokenizer) is None
    assert run(data, tokenizer).digest != first.digest


def test_worker_processes_see_the_same_digest_and_make_the_same_store_as_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tokenizer(tmp_path / "tokenizer", make_tokenizer())
    rows = [{"text": f"{i} words " * 300, "weight": i % 7 / 2} for i in range(900)]
    source, values = SourceConfig(path=write_rows(tmp_path / "texts.jsonl", rows)), [TokenValue.weight]
    tokenizer = load_saved(folder)
    alone = run(make_data(tmp_path, source, values=values), tokenizer)
    monkeypatch.setattr(prepare_module, "PARALLEL_BYTES", 0)
    data = make_data(tmp_path / "other", source, num_workers=2, values=values)
    console = Console(file=io.StringIO())
    together = prepare(data, tokenizer, partial(load_saved, folder, tokenizer.digest), None, console)["s"]
    assert together.meta == alone.meta


# ---- long documents


def long_source(tmp_path: Path, policy: LongDocuments) -> SourceConfig:
    texts = ["short", "x" * 100, "also short", "y" * 70]
    return texts_source(tmp_path, texts, packing=Packing.best_fit, long_documents=policy)


def test_a_document_longer_than_the_sequence_is_an_error_that_names_both_ways_out(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError) as caught:
        run(make_data(tmp_path, long_source(tmp_path, LongDocuments.error)), make_tokenizer())
    message = str(caught.value)
    for part in ("data.seq_len", "data.sources.s.long_documents", "2 of 4 documents", "101 tokens", "line 2"):
        assert part in message
    assert stores(tmp_path) == [] and leftovers(tmp_path) == []


def test_long_documents_are_dropped_with_their_count_if_asked(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    store = run(make_data(tmp_path, long_source(tmp_path, LongDocuments.drop)), tokenizer)
    assert decode_packs(store.train, tokenizer) == ["short</s>also short</s>"]
    assert store.meta["counts"]["long_dropped"] == 2


def test_long_documents_are_cut_and_all_their_tokens_kept_if_asked(tmp_path: Path) -> None:
    store = run(make_data(tmp_path, long_source(tmp_path, LongDocuments.split)), make_tokenizer())
    packed = sum(len(store.train.pack(i).tokens) for i in range(store.train.num_packs))
    assert packed == store.train.num_tokens == 6 + 101 + 11 + 71
    assert store.meta["counts"]["long_split"] == 2


# ---- rows


def test_documents_that_are_rows_are_whole_beside_others_of_their_length(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    source = texts_source(tmp_path, ["a" * 30, "b" * 5, "c" * 28, "d" * 60, "e" * 6])
    store = run(make_data(tmp_path, source, packing=PackingMode.none), tokenizer)
    lengths = [store.train.pack(i).lengths for i in range(store.train.num_packs)]
    # 64 positions a pack: rows of 32 for 31 and 29 tokens, of 64 for 61, of 8 for 6 and 7.
    assert lengths == [[31, 29], [6, 7], [61]]
    assert store.train.in_rows and store.train.pack_positions.tolist() == [64, 16, 64]
    packed = run(make_data(tmp_path, source, packing=PackingMode.packed), tokenizer)
    assert packed.digest != store.digest and not packed.train.in_rows
    assert packed.digest == run(make_data(tmp_path, source), tokenizer).digest


def test_long_texts_are_split_into_rows_and_long_chats_refused_unless_it_is_said(tmp_path: Path) -> None:
    source = texts_source(tmp_path, ["short", "x" * 100])
    store = run(make_data(tmp_path, source, packing=PackingMode.none), make_tokenizer())
    assert store.meta["counts"]["long_split"] == 1
    assert sum(len(store.train.pack(i).tokens) for i in range(store.train.num_packs)) == 6 + 101
    source.long_documents = LongDocuments.error
    with pytest.raises(DataError, match="must hold every document"):
        run(make_data(tmp_path, source, packing=PackingMode.none), make_tokenizer())


# ---- bad input


def check_refused(tmp_path: Path, source: SourceConfig, tokenizer: Tokenizer, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        run(make_data(tmp_path, source), tokenizer)
    for part in parts:
        assert part in str(caught.value)
    assert stores(tmp_path) == [] and leftovers(tmp_path) == []


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    source = texts_source(tmp_path, [])
    check_refused(tmp_path, source, make_tokenizer(), "`data.sources.s` must hold documents")


def test_a_corpus_that_cleaning_empties_is_refused_with_the_reasons(tmp_path: Path) -> None:
    source = texts_source(tmp_path, ["", " "])
    check_refused(
        tmp_path,
        source,
        make_tokenizer(),
        "none of 2",
        "2 too short",
        "Lower data.sources.s.clean.min_chars.",
    )


def test_what_empties_a_corpus_without_cleaning_is_not_blamed_on_it(tmp_path: Path) -> None:
    """The reason that took the most rows says what to do."""
    rows = [{"prompt": "a", "completion": None}, {"prompt": "b", "completion": ""}]
    source = SourceConfig(path=write_rows(tmp_path / "c.jsonl", rows), format=Format.completion)
    refused = ("none of 2", "2 without a completion. Check that data.sources.s.columns.completion")
    check_refused(tmp_path, source, make_tokenizer(), *refused)


def test_a_missing_column_leaves_nothing_behind(tmp_path: Path) -> None:
    source = SourceConfig(path=write_rows(tmp_path / "a.jsonl", [{"body": "x"}]))
    check_refused(tmp_path, source, make_tokenizer(), "columns.text", "[body]")


def test_invalid_json_is_refused_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    source = SourceConfig(path=str(tmp_path / "a.jsonl"))
    check_refused(tmp_path, source, make_tokenizer(), "a.jsonl, line 2", "JSON")


def test_conversations_without_an_assistant_turn_are_counted_and_the_first_is_named(
    tmp_path: Path,
) -> None:
    rows = [{"messages": TURNS}, {"messages": TURNS[:1]}, {"messages": TURNS[:1]}]
    source = SourceConfig(path=write_rows(tmp_path / "c.jsonl", rows), format=Format.chat)
    parts = ("2 of 3 rows", "c.jsonl, line 2", "assistant turn", "Remove these rows")
    check_refused(tmp_path, source, make_tokenizer(), *parts)


def test_a_conversation_that_the_template_refuses_is_named_with_its_reason(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": "x"}, *TURNS]}]
    source = SourceConfig(path=write_rows(tmp_path / "c.jsonl", rows), format=Format.chat)
    tokenizer = make_tokenizer(templates.GEMMA)
    parts = ("c.jsonl, line 1", "System role not supported", "first user turn")
    check_refused(tmp_path, source, tokenizer, *parts)


def test_a_template_that_fails_on_every_conversation_is_named_before_a_row_is_read(tmp_path: Path) -> None:
    source = SourceConfig(path=write_rows(tmp_path / "c.jsonl", [{"messages": TURNS}]), format=Format.chat)
    (tmp_path / "c.jsonl").write_text("no JSON\n")
    tokenizer = make_tokenizer("{% for m in messages %}\n{{ m.content.nope.x }}{% endfor %}")
    said = "fails on a short one, with a system turn and without: "
    check_refused(
        tmp_path,
        source,
        tokenizer,
        "`model.chat_template` must render",
        said,
        ", line 2: ",
        "no attribute 'nope'",
    )


LATER = "{% if messages | length > 2 %}{{ messages.nope.x }}{% endif %}"


@pytest.mark.parametrize(
    ("refusing", "is_blamed"),
    [
        ("{% if messages | length > 2 %}{{ raise_exception('Two turns only') }}{% endif %}", False),
        (LATER, True),
    ],
    ids=["refuses", "fails"],
)
def test_where_all_rows_break_a_template_alike_it_is_named_first_and_rows_last(
    tmp_path: Path, refusing: str, is_blamed: bool
) -> None:
    """What only longer conversations meet is not found before; one that says no is right."""
    tokenizer = make_tokenizer(refusing + "\n" + templates.CHATML)
    rows = [{"messages": [*TURNS, *TURNS]}] * 3
    source = SourceConfig(path=write_rows(tmp_path / "c.jsonl", rows), format=Format.chat)
    with pytest.raises(DataError) as caught:
        run(make_data(tmp_path, source), tokenizer)
    said = str(caught.value)
    assert said.startswith("`model.chat_template` must render") is is_blamed, said
    if is_blamed:
        assert ", line 1: 'list object' has no attribute 'nope'; so on each of 3 rows, from" in said
        write_rows(tmp_path / "c.jsonl", [*rows, {"messages": TURNS}])
        check_refused(tmp_path, source, tokenizer, "but 3 of 4 rows do not", "Mend the template there or")


def test_chats_without_a_chat_template_are_refused(tmp_path: Path) -> None:
    source = SourceConfig(path=write_rows(tmp_path / "c.jsonl", [{"messages": TURNS}]), format=Format.chat)
    check_refused(tmp_path, source, make_tokenizer(template=None), "`model.chat_template`", "sources.s")


def test_a_source_with_nothing_supervised_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "i.jsonl", [{"input_ids": [1, 2], "m": [0, 0]}])
    source = SourceConfig(path=path, format=Format.ids, columns=ColumnsConfig(loss_mask="m"))
    check_refused(tmp_path, source, make_tokenizer(), "none of its 2 tokens is supervised")


def test_ids_beyond_the_vocabulary_are_refused_with_the_place(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    data = make_data(tmp_path, texts_source(tmp_path, ["a", "b"]))
    with pytest.raises(DataError) as caught:
        run(data, tokenizer, vocab_size=200)
    for part in ("`data.sources.s`", f"the id {tokenizer.eos_id}", "vocabulary of 200", "line 1"):
        assert part in str(caught.value)
    assert stores(tmp_path) == [] and leftovers(tmp_path) == []


def test_a_store_made_for_a_larger_vocabulary_is_refused_when_it_is_found(tmp_path: Path) -> None:
    data = make_data(tmp_path, texts_source(tmp_path, ["a"]))
    run(data, make_tokenizer())
    with pytest.raises(DataError, match="vocabulary of 200"):
        run(data, make_tokenizer(), vocab_size=200)


# ---- what training finds


def test_training_opens_what_prepare_made(tmp_path: Path) -> None:
    data = make_data(tmp_path, texts_source(tmp_path, ["one"]))
    digest = run(data, make_tokenizer()).digest
    assert open_prepared("s", data.sources["s"], data, make_tokenizer()).digest == digest


def test_training_without_a_store_asks_for_prepare(tmp_path: Path) -> None:
    data = make_data(tmp_path, texts_source(tmp_path, ["one"]))
    with pytest.raises(DataError, match="palimpsest prepare` with the same overrides"):
        open_prepared("s", data.sources["s"], data, make_tokenizer())
    run(data, make_tokenizer())
    data.seq_len = 128
    with pytest.raises(DataError, match="no token store for it with these options"):
        open_prepared("s", data.sources["s"], data, make_tokenizer())


def test_a_store_made_by_another_tokenizer_is_called_that(tmp_path: Path) -> None:
    data = make_data(tmp_path, texts_source(tmp_path, ["one"]))
    run(data, make_tokenizer())
    with pytest.raises(DataError, match="made by another tokenizer"):
        open_prepared("s", data.sources["s"], data, make_tokenizer(adds_bos=True))


def test_a_store_made_by_another_tokenizer_is_called_that_of_files_that_were_touched_too(
    tmp_path: Path,
) -> None:
    """Their times name another source: it was said that nothing was prepared. Other content is another source."""
    data = make_data(tmp_path, texts_source(tmp_path, ["one"]))
    run(data, make_tokenizer())
    file = Path(str(data.sources["s"].path))
    os.utime(file, (1, 1))
    with pytest.raises(DataError, match="made by another tokenizer"):
        open_prepared("s", data.sources["s"], data, make_tokenizer(adds_bos=True))
    file.write_text(file.read_text().replace("one", "two"))
    with pytest.raises(DataError, match="has no token store"):
        open_prepared("s", data.sources["s"], data, make_tokenizer(adds_bos=True))


def test_training_needs_neither_datasets_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['datasets'] = None; sys.modules['transformers'] = None; "
        "sys.modules['rich'] = None; import trainer.data.store.prepared, trainer.data.store.store"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---- accidents


def start(data: DataConfig, go: Any = None) -> BaseProcess:
    """Prepare in a process of its own; forked, because importing everything again takes seconds."""
    tokenizer = make_tokenizer()

    def work() -> None:
        if go is not None:
            go.wait()
        run(data, tokenizer)

    process = get_context("fork").Process(target=work)
    process.start()
    return process


def lines_data(tmp_path: Path, num_lines: int) -> DataConfig:
    (tmp_path / "corpus.txt").write_text("some words in a line\n" * num_lines)
    source = SourceConfig(path=str(tmp_path / "corpus.txt"), txt_documents="line")
    return make_data(tmp_path, source)


def test_of_two_processes_at_once_one_waits_for_the_others_store(tmp_path: Path) -> None:
    """The points of a sweep start together and miss the same store: it is made once."""
    data, tokenizer = lines_data(tmp_path, 2_000), make_tokenizer()
    lock = lock_file("s", data.sources["s"], data, tokenizer)
    shown = io.StringIO()
    with ThreadPoolExecutor(1) as other, one_at_a_time(lock, pytest.fail):
        waiting = other.submit(run, data, tokenizer, show=shown)
        wait_until(
            lambda: "waiting" in shown.getvalue() or waiting.done(), "a word that it waits", shown.getvalue
        )
        assert not waiting.done()
        made = prepare_module._build(
            "s", data.sources["s"], data, tokenizer, lambda: tokenizer, None, Console(file=io.StringIO())
        )
        assert not waiting.done()
    assert f"s: being prepared by process {os.getpid()} on " in shown.getvalue()
    assert waiting.result().digest == made.digest and "s: 2,000 rows" not in shown.getvalue()


def test_where_the_disk_has_no_locks_sources_are_prepared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert run(lines_data(tmp_path, 50), make_tokenizer()).train.num_tokens == 50 * 21


def test_two_processes_at_once_leave_one_whole_store(tmp_path: Path) -> None:
    data = lines_data(tmp_path, 20_000)
    go = get_context("fork").Event()
    processes = [start(data, go) for _ in range(2)]
    go.set()
    for process in processes:
        process.join(LIMIT_S)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(stores(tmp_path)) == 1 and leftovers(tmp_path) == []
    assert run(data, make_tokenizer()).train.num_tokens == 20_000 * len("some words in a line!")


def test_a_process_killed_in_the_middle_leaves_no_store_and_the_next_one_makes_it(
    tmp_path: Path,
) -> None:
    process = start(lines_data(tmp_path, 150_000))
    pattern = "cache/stores/.*.tmp/spool-tokens"
    wait_until(
        lambda: not process.is_alive() or any(p.stat().st_size for p in tmp_path.glob(pattern)),
        "the first tokens",
        poll_s=0.005,
    )
    assert process.is_alive()
    process.kill()
    process.join()
    assert stores(tmp_path) == [] and not (tmp_path / "cache" / "prepared").exists()
    assert len(leftovers(tmp_path)) == 1
    run(lines_data(tmp_path, 50), make_tokenizer())
    assert len(stores(tmp_path)) == 1 and leftovers(tmp_path) == []


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this test needs a small file system, and may not mount one here")
    try:
        source = texts_source(tmp_path, ["some words " * 30_000] * 3)
        with pytest.raises(DataError, match=r"data\.cache_dir.*is full"):
            run(make_data(tmp_path, source), make_tokenizer())
        assert stores(tmp_path) == [] and leftovers(tmp_path) == []
    finally:
        subprocess.run(["umount", "-l", str(cache)], check=True)


def test_a_damaged_store_is_made_again(tmp_path: Path) -> None:
    data = make_data(tmp_path, texts_source(tmp_path, ["one"]))
    store = run(data, make_tokenizer())
    folder = stores(tmp_path)[0]
    (folder / "train" / "tokens.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"tokens\.bin has 0 bytes"):
        open_prepared("s", data.sources["s"], data, make_tokenizer())
    assert run(data, make_tokenizer()).digest == store.digest
    assert open_prepared("s", data.sources["s"], data, make_tokenizer()).train.num_tokens == 4


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.exists(), reason=f"needs {GSM8K}")
def test_gsm8k_fills_its_packs_to_99_percent(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    tokenizer = make_tokenizer(texts=[row["question"] + row["answer"] for row in rows[:200]])
    source = SourceConfig(
        path=str(GSM8K),
        format=Format.completion,
        columns=ColumnsConfig(prompt="question", completion="answer"),
        as_chat=True,
    )
    store = run(make_data(tmp_path, source, seq_len=2048), tokenizer)
    assert store.train.num_tokens / (store.train.num_packs * 2048) >= 0.99
    sizes = np.array([len(store.train.pack(i).tokens) for i in range(store.train.num_packs)])
    assert sizes.sum() == store.train.num_tokens and sizes.max() <= 2048


def probed(tmp_path: Path, probe_texts: list[str]) -> dict[str, Store]:
    source = texts_source(tmp_path, [f"document {i}" for i in range(20)])
    path = write_rows(tmp_path / "probe.jsonl", [{"text": text} for text in probe_texts])
    sources = {"s": source, "probe": SourceConfig(path=path, role=Role.probe)}
    data = DataConfig(
        sources=sources, seq_len=64, num_workers=1, validation_frac=0.2, cache_dir=str(tmp_path / "cache")
    )
    tokenizer = make_tokenizer()
    return prepare(data, tokenizer, lambda: tokenizer, None, Console(file=io.StringIO()))


def test_a_probe_is_held_out_whole_and_shown(tmp_path: Path) -> None:
    store = probed(tmp_path, ["one text", "another text"])["probe"]
    assert store.train.num_packs == 0 and store.validation.num_packs == 1
    assert store.meta["splits"]["validation"]["num_documents"] == 2


def test_a_held_out_document_that_another_source_trains_on_is_refused(tmp_path: Path) -> None:
    trained = [f"document {i}" for i in range(20)]
    with pytest.raises(DataError) as caught:
        probed(tmp_path, ["one text", *trained])
    message = str(caught.value)
    assert message.startswith("`data.sources.probe` must hold out documents that no source trains on, but ")
    assert "of its 21 held-out documents are also in the training part of `data.sources.s`" in message


def test_role_weight_and_passes_shape_no_store(tmp_path: Path) -> None:
    """A failure: changing how much is drawn of a source prepares it anew."""
    digests = set()
    for options in ({}, {"weight": 2.0}, {"max_epochs": 3.0}, {"role": Role.replay}):
        source = texts_source(tmp_path, ["a text", "more text"], **options)
        digests.add(run(make_data(tmp_path, source), make_tokenizer()).digest)
    assert len(digests) == 1


def test_nothing_is_printed_before_what_a_person_has_to_mend(tmp_path: Path) -> None:
    """What the chat template has no place for was told first, of rows that are not even read."""
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [\n')
    shown = io.StringIO()
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match=r"`data.sources.s`: .*chats.jsonl, line 1 must be a JSON object"):
        run(make_data(tmp_path, SourceConfig(path=str(path), format=Format.chat)), tokenizer, show=shown)
    assert shown.getvalue() == ""
    write_rows(path, [{"messages": TURNS}])
    run(make_data(tmp_path, SourceConfig(path=str(path), format=Format.chat)), tokenizer, show=shown)
    assert "The chat template has no place for" in shown.getvalue()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["one"], "nothing held out: 1 document is too few"),
        (["one", "one"], "nothing held out: 2 documents are too few"),
        (
            ["one", "two"],
            "1 of 2 documents held out, since data.validation_frac=0.02 of them is less than one",
        ),
    ],
)
def test_a_share_of_few_documents_is_told_in_words(tmp_path: Path, texts: list[str], said: str) -> None:
    data = make_data(tmp_path, texts_source(tmp_path, texts), validation_frac=0.02)
    assert run(data, make_tokenizer()).meta["split_note"] == said
