"""Bad models and data through `palimpsest prepare`: one sentence with the place and the fix, nothing half-written."""

import json
from types import SimpleNamespace

import pytest

from tests.helpers.templates import CHATML
from tests.helpers.tokenizers import make_tokenizer, save_tokenizer
from trainer.cli import run_command

ASKED = {"role": "user", "content": "why?"}
SAID = {"role": "assistant", "content": "so"}


@pytest.fixture
def prepare(refuse, here, tmp_path, model):
    """Return functions that write rows and prepare them: refused, or not."""
    cache = tmp_path / "cache"

    def arguments(kind, *overrides):
        source = {"text": "corpus", "chat": "chat", "prompt_completion": "pairs"}[kind]
        return [
            "prepare",
            f"data={kind}",
            f"data.sources.{source}.path={tmp_path}/rows.jsonl",
            "model.kind=pretrained",
            f"model.path={model}",
            f"data.cache_dir={cache}",
            "data.seq_len=64",
            "data.num_workers=1",
            "train.max_steps=1",
            "train.global_batch_tokens=64",
            *overrides,
        ]

    def rows(*values):
        lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
        (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))

    def refused(kind, *overrides):
        message = refuse(*arguments(kind, *overrides))
        assert "\n" not in message and message.endswith((".", "]")), message
        assert [path for path in cache.rglob("*") if path.is_file()] == [], "half a store is left"
        return message

    def accepted(kind, *overrides):
        assert run_command(arguments(kind, *overrides)) == 0
        return sorted(path.name for path in (cache / "stores").glob("[!.]*"))

    return SimpleNamespace(rows=rows, refused=refused, accepted=accepted, arguments=arguments)


def check(message, *parts):
    missing = [part for part in parts if part not in message]
    assert not missing, (missing, message)


def test_an_empty_corpus_is_refused(prepare):
    prepare.rows()
    check(prepare.refused("text"), "`data.sources.corpus` must hold documents, but is empty", "drop it")


def test_a_corpus_that_is_not_there_is_named_with_its_key(prepare):
    check(prepare.refused("text"), "`data.sources.corpus.path`", "rows.jsonl' instead", "Check the path")


def test_a_missing_column_is_named_with_the_columns_that_are_there(prepare):
    prepare.rows({"body": "x", "title": "y"})
    parts = ("`data.sources.corpus.columns.text`", "rows.jsonl", "but is 'text' instead", "[body, title]")
    check(prepare.refused("text"), *parts)


def test_invalid_json_is_named_with_file_and_line(prepare):
    prepare.rows({"text": "a"}, {"text": "b"}, '{"text": "c')
    check(prepare.refused("text"), "rows.jsonl, line 3", "not valid JSON", "Mend or remove the line")


def test_a_conversation_without_an_assistant_turn_is_named_with_its_line(prepare):
    prepare.rows({"messages": [ASKED, SAID]}, {"messages": [ASKED]})
    parts = ("assistant turn", "1 of 2 rows", "rows.jsonl, line 2", "['user']", "Remove these rows")
    check(prepare.refused("chat"), *parts)


def test_every_kind_of_bad_row_and_what_else_is_wrong_are_told_at_once(refuse, prepare):
    prepare.rows({"messages": [ASKED, SAID | {"role": "usr"}]}, {"messages": 1}, {"messages": [ASKED, SAID]})
    message = refuse(*prepare.arguments("chat", "data.seq_len=-1"))
    check(message, "`data.seq_len` must", "line 1", "'usr'", "line 2", "It must", "1 of 3 rows does not")
    prepare.rows()
    message = refuse(*prepare.arguments("chat", "data.seq_len=-1"))
    check(message, "`data.seq_len` must", "`data.sources.chat` must hold documents, but is empty")


def test_a_tokenizer_without_a_chat_template_is_named_with_the_key_to_set(prepare, tmp_path):
    prepare.rows({"messages": [ASKED, SAID]})
    plain = save_tokenizer(tmp_path / "plain", make_tokenizer(template=None))
    parts = ("`model.chat_template`", "data.sources.chat", "instruct model's tokenizer")
    check(prepare.refused("chat", f"model.tokenizer={plain}"), *parts)


def test_a_conversation_longer_than_the_sequence_names_every_way_out(prepare):
    prepare.rows(
        {"messages": [ASKED, SAID]}, {"messages": [ASKED, {"role": "assistant", "content": "o" * 99}]}
    )
    parts = ("`data.seq_len`", "but is 64", "1 of 2 documents", "line 2", "long_documents to drop or split")
    check(prepare.refused("chat"), *parts)


def test_a_vocabulary_smaller_than_the_ids_is_named_with_the_document(prepare, tmp_path):
    prepare.rows({"text": "abc"}, {"text": "def"})
    big = make_tokenizer(CHATML)
    big.hf.add_tokens([f"<extra{i}>" for i in range(99)])
    tokenizer = save_tokenizer(tmp_path / "big", big)
    assert big.vocab_size > 264
    prepare.rows({"text": "abc"}, {"text": "<extra98>"})
    parts = ("below the model's vocabulary of 264", f"the id {big.vocab_size - 1}", "line 2", "own tokenizer")
    check(prepare.refused("text", f"model.tokenizer={tokenizer}"), *parts)


def test_a_template_that_is_not_there_is_named(prepare):
    prepare.rows({"text": "a"})
    check(prepare.refused("text", "model.chat_template=nope.jinja"), "`model.chat_template`", "nope.jinja")


def test_a_template_that_is_no_jinja_is_named_with_its_line_and_with_what_else_is_wrong(
    refuse, prepare, tmp_path
):
    (tmp_path / "bad.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    words = ("model.chat_template=" + str(tmp_path / "bad.jinja"), "data.seq_len=-1")
    message = refuse(*prepare.arguments("chat", *words))
    check(
        message,
        "`data.seq_len` must",
        f"must be valid Jinja, but {tmp_path}/bad.jinja, line 2, is not: unexpected",
    )


def test_another_chat_template_makes_another_store_and_keeps_the_first(prepare, tmp_path):
    prepare.rows({"messages": [ASKED, SAID]})
    first = prepare.accepted("chat")
    template = tmp_path / "template.jinja"
    template.write_text(CHATML.replace("Be kind.", "Be brief."))
    both = prepare.accepted("chat", f"model.chat_template={template}")
    assert len(first) == 1 and len(both) == 2 and set(first) < set(both)
    assert prepare.accepted("chat") == both, "the first is found again"


# ---- models


def write_model(folder, model_type, architectures, **more):
    folder.mkdir()
    record = {"model_type": model_type, "architectures": architectures, **more}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "tokenizer.json").write_text("{}")
    return f"model.path={folder}"


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("bert", "BertForMaskedLM"),
        ("bert", "BertLMHeadModel"),
        ("t5", "T5ForConditionalGeneration"),
        ("llama", "LlamaForSequenceClassification"),
        ("vit", "ViTForImageClassification"),
    ],
)
def test_a_model_that_is_not_causal_is_refused_before_the_data_is_read(
    prepare, tmp_path, model_type, architecture
):
    prepare.rows({"text": "a"})
    path = write_model(tmp_path / "other", model_type, [architecture])
    parts = ("`model.path` must be a causal language model", f"is {architecture} instead", "ForCausalLM")
    check(prepare.refused("text", path), *parts)


def test_a_model_folder_that_is_not_there_is_named(prepare):
    prepare.rows({"text": "a"})
    check(prepare.refused("text", "model.path=./nope"), "`model.path`", "/nope' instead. Check the path.")


@pytest.mark.parametrize(
    ("text", "state"),
    [("{", "that is no JSON"), ("[]", "names no model_type"), ("{}", "names no model_type")],
)
def test_a_config_json_that_says_nothing_is_refused(prepare, tmp_path, text, state):
    prepare.rows({"text": "a"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(text)
    check(prepare.refused("text", f"model.path={tmp_path}/other"), "`model.path`", state)


def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(prepare, tmp_path):
    prepare.rows({"text": "a"})
    path = write_model(tmp_path / "other", "strange", None, auto_map={"AutoConfig": "strange.Config"})
    marker = tmp_path / "was-run"
    code = f"open({str(marker)!r}, 'w')\nfrom transformers import PretrainedConfig\n"
    (tmp_path / "other" / "strange.py").write_text(code + "class Config(PretrainedConfig):\n    pass\n")
    check(prepare.refused("text", path), "`model.path`", "custom code")
    assert not marker.exists()


def test_a_model_with_code_of_its_own_names_the_key_that_allows_it(prepare, tmp_path):
    prepare.rows({"text": "a"})
    path = write_model(tmp_path / "other", "strange", None, auto_map={"AutoConfig": "strange.Config"})
    (tmp_path / "other" / "strange.py").write_text("")
    check(prepare.refused("text", path), "model.trust_remote_code")


def test_a_cache_that_cannot_be_written_is_named_with_its_key(refuse, prepare, tmp_path):
    prepare.rows({"text": "a"})
    (tmp_path / "file").write_text("")
    arguments = prepare.arguments("text", "model.kind=tiny", f"data.cache_dir={tmp_path}/file")
    check(refuse(*(word for word in arguments if not word.startswith("model.path="))), "Set data.cache_dir.")


def test_replay_that_was_never_generated_is_refused_with_the_command(prepare):
    prepare.rows({"text": "a document"})
    message = prepare.refused("text", "replay=generated")
    assert message.startswith("`data.sources.generated` must have been sampled before training, but ")
    assert message.endswith("Run: palimpsest replay generate with the same overrides.")


def test_a_run_that_would_repeat_a_source_too_often_is_refused_before_ranks_start(prepare, refuse, tmp_path):
    """Nothing of the run is frozen: the same directory takes a mended configuration."""
    prepare.rows(*({"text": f"document number {i} of some length"} for i in range(9)))
    words = [*prepare.arguments("text"), "data.sources.corpus.max_epochs=1", "train.max_steps=50"]
    message = refuse("train", *words[1:], f"run_dir={tmp_path / 'run'}")
    assert message.startswith("`data.sources.corpus.max_epochs` must be at least ")
    assert "Add documents, shorten the run" in message
    assert not (tmp_path / "run" / "config.yaml").exists()
