"""The model card: read by the hub's own parser, with the numbers of the run's files and nothing of this machine."""

import json

import pytest
from huggingface_hub import ModelCard, metadata_load

from tests.helpers.run_files import write_run
from trainer.evaluate.gate import GateResult
from trainer.export.base_card import BaseCard
from trainer.report.model_card import Exported, SourceFacts, _settings, build_card
from trainer.report.record import RunRecord, read_run
from trainer.report.series import Metrics

BASE = BaseCard("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "apache-2.0", said_by="README.md", languages=("en", "de"))
SOURCES = {
    "manuals_de": SourceFacts("target", "my-org/manuals", "68b0613d582aa002", 1200, 9_441_280, "3 empty"),
    "general": SourceFacts("replay", None, "0123456789abcdef", None, 1_048_576, ""),
}
EXPORTED = Exported(
    name="german-manuals",
    is_adapter=False,
    what="It is step-00000160 of the run, in bfloat16.",
    proof="291 tensors written and read back.",
    checkpoint="step-00000160",
    base=BASE,
    sources=SOURCES,
    gate=None,
    tags=["continued-pretrain"],
)


@pytest.fixture
def card(tmp_path):
    """Return the card of a finished run, with changes to what was exported and to its provenance."""
    run_dir = write_run(tmp_path / "run")

    def build(provenance=(), **changes):
        path = run_dir / "provenance.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(provenance)))
        exported = Exported(**{name: getattr(EXPORTED, name) for name in EXPORTED.__slots__} | changes)
        return build_card(read_run(run_dir), exported)

    build.run_dir = run_dir
    return build


def test_the_hubs_parser_reads_the_head(card, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(card())
    assert metadata_load(path) == {
        "base_model": "Qwen/Qwen3-8B",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en", "de"],
        "datasets": ["my-org/manuals"],
        "tags": ["palimpsest", "continued-pretrain"],
    }
    parsed = ModelCard.load(path)
    assert parsed.data.base_model == "Qwen/Qwen3-8B" and parsed.data.license == "apache-2.0"
    assert parsed.text.startswith("\n# german-manuals\n")


def test_an_adapter_of_a_folder_names_no_base_and_no_licence(card):
    base = BaseCard("my-base", None, "other", "unknown")
    parsed = ModelCard(card(base=base, is_adapter=True))
    described = parsed.data.to_dict()
    assert "base_model" not in described and described["library_name"] == "peft"
    assert (parsed.data.license, parsed.data.license_name) == ("other", "unknown")
    assert "Its folder here does not say which licence it has" in parsed.text


def test_the_numbers_are_those_of_the_files(card):
    found = json.loads((card.run_dir / "forgetting.json").read_text())
    text = card()
    target = found["sets"][0]
    assert f"| manuals_de | target | {target['base_nats']:.4f} | {target['tuned_nats']:.4f} | \u2212" in text
    assert (
        "| manuals_de | target | my-org/manuals | 1,200 | 9,441,280 | 90.0\u202f% | `68b0613d582aa002` |"
        in text
    )
    assert "| `optim.lr` | `0.0002` |" in text and "| `zero.stage` | `2` |" in text
    assert "Share of supervised tokens: 10.0\u202f%; asked: 10.0\u202f%." in text
    assert "| Hardware | NVIDIA H200, 139 GiB; ranks: 2 |" in text and "| Attempts | 2 |" in text
    assert "7dbfdf2e96af9893246c5c17a943014d48573ad4" in text
    assert "* manuals_de: 3 empty." in text and "* Steps that were not finite and were skipped: 1." in text


def test_limits_are_said_plainly(card):
    limits = card().partition("## Limits")[2].partition("##")[0]
    assert "It is worse than its base on held-out text of" in limits and "wikitext (+0.1" in limits
    assert (
        "No benchmark task was run" in limits and "Safety, bias and truthfulness were not measured" in limits
    )


def test_what_is_missing_is_said(card):
    for name in ("forgetting.json", "ledger.jsonl", "provenance.json"):
        (card.run_dir / name).unlink()
    text = build_card(read_run(card.run_dir), EXPORTED)
    assert "Not measured for step-00000160: there is no forgetting.json." in text
    assert "It was not compared with its base" in text and "| Commit of the trainer | not recorded |" in text
    assert "* general: not known, the token store is not here." in text
    other = card.run_dir / "forgetting.json"
    write_run(card.run_dir)
    assert "it is about step-00000160." in build_card(read_run(card.run_dir), replaced("step-00000080"))
    assert other.exists()


def replaced(checkpoint):
    values = {name: getattr(EXPORTED, name) for name in EXPORTED.__slots__}
    return Exported(**values | {"checkpoint": checkpoint})


def test_the_gate_says_its_verdict(card):
    kept = GateResult("general", "nats", "rises by at most", 0.1, 0.02)
    broken = GateResult("wikitext", "nats", "rises by at most", 0.05, 0.094)
    assert "Passed.\n" in card(gate=[kept])
    text = card(gate=[kept, broken])
    assert "**Not passed**: 1 of 2 rules are broken." in text
    assert "| wikitext | nats rises by at most 0.05 | +0.0940 | FAIL |" in text


def test_no_path_and_no_secret_is_in_it(card, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcDEF0123456789abcdef")
    words = (
        "train data.sources.a.path=/srv/jane/secret-project/a.jsonl model.path=~/models/qwen run_dir=./runs/x "
        "'b=[/scratch/jane/b.jsonl,file:///srv/jane/c.jsonl]' log.api_key=sk-abcdefghijklmnopqrst "
        "hf_abcDEF0123456789abcdef"
    )
    text = card(provenance={"words": words}.items(), what="Base at /srv/jane/qwen.")
    assert "data.sources.a.path=a.jsonl model.path=qwen run_dir=x" in text and "b=[b.jsonl,c.jsonl]" in text
    for private in ("jane", "secret-project", "hf_abc", "sk-abc", "/srv", "/scratch"):
        assert private not in text, private
    assert "https://huggingface.co/Qwen/Qwen3-8B" in text


def test_settings_have_the_alpha_that_was_taken_and_the_name_of_the_template_without_its_folder(tmp_path):
    """Both are chosen by leaving them out or by a path, and change what the adapter is."""
    config = {
        "tune": {"method": "lora", "r": 16, "alpha": None},
        "model": {"chat_template": "/shared/me/own.jinja"},
    }
    shown = _settings(RunRecord(tmp_path, None, Metrics(tmp_path / "metrics.jsonl"), (), config, None, {}))
    assert "| `tune.alpha` | `32 (twice tune.r)` |" in shown
    assert "| `model.chat_template` | `own.jinja` |" in shown and "/shared" not in shown
