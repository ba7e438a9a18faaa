"""Reading a run directory: whole, in pieces, and broken."""

import json
import math

import pytest

from tests.helpers.run_files import forgetting, write_run
from trainer.errors import TrainerError
from trainer.evaluate.record import read_forgetting
from trainer.report.record import read_run
from trainer.report.series import Metrics, thinned


def write(tmp_path, plain):
    path = tmp_path / "forgetting.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    return path


def put(plain, keys, value):
    *way, last = keys
    for key in way:
        plain = plain[key]
    plain[last] = value


def test_a_whole_run_is_read(tmp_path):
    record = read_run(write_run(tmp_path))
    assert record.name == "german-manuals"
    assert record.forgetting.sets[0].name == "manuals_de"
    assert record.forgetting.replay.sources[1].max_epochs == 4.0
    assert [event["event"] for event in record.events][-1] == "stopped"
    assert record.setting("data.seq_len") == 1024 and record.setting("data.none.such") is None
    assert len(record.config_digest) == 64


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path):
    run_dir = write_run(tmp_path)
    whole = read_run(run_dir)
    for name in ("metrics.jsonl", "ledger.jsonl"):
        content = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes(content[:-9])
    cut = read_run(run_dir)
    assert cut.metrics.rows == whole.metrics.rows[:-1] and cut.events == whole.events[:-1]


@pytest.mark.parametrize(
    "name", ["forgetting.json", "metrics.jsonl", "ledger.jsonl", "config.yaml", "provenance.json"]
)
def test_any_file_may_be_missing(tmp_path, name):
    run_dir = write_run(tmp_path)
    (run_dir / name).unlink()
    record = read_run(run_dir)
    assert record.name == "german-manuals"
    assert not {
        "forgetting.json": record.forgetting,
        "metrics.jsonl": record.metrics.rows,
        "ledger.jsonl": record.events,
        "config.yaml": record.config,
        "provenance.json": record.provenance,
    }[name]


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(TrainerError, match=r"`run_dir` must hold a run, but .* has none of forgetting\.json"):
        read_run(tmp_path)


def test_intervals_may_be_null(tmp_path):
    found = read_forgetting(write(tmp_path, forgetting()))
    assert found.sets[-1].change_low is None and found.sets[-1].change_high is None
    assert found.kl[1].low is None


WRONG = {
    ("version",): (2, "`version` of .* must be 1, but is 2 instead"),
    ("run", "steps"): (1.5, r"`run\.steps` .* must be a whole number from 0 up, but is 1\.5"),
    ("run", "name"): (3, r"`run\.name` .* must be text"),
    ("sets",): ({}, "`sets` .* must be a list"),
    ("sets", 1, "base_nats"): (math.nan, r"`sets\[1\]\.base_nats` .* must be a finite number, but is nan"),
    ("sets", 0, "change_low"): (math.inf, r"`sets\[0\]\.change_low` .* must be a finite number or null"),
    ("sets", 0, "change_high"): (None, r"`sets\[0\]\.change_low` .* must be null exactly where"),
    ("sets", 2, "role"): ("prob", r"`sets\[2\]\.role` .* must be target, replay or probe, but is 'prob'"),
    ("sets", 2, "num_targets"): (True, r"`sets\[2\]\.num_targets` .* must be a whole number"),
    ("kl", 0, "low"): (None, r"`kl\[0\]\.low` .* must be null exactly where kl\[0\]\.high is"),
    ("recovery",): ([], "`recovery` .* must be a JSON object"),
    ("replay", "sources", 0): ({}, r"`replay\.sources\[0\]\.name` .* must be given, but is missing"),
}


@pytest.mark.parametrize("keys", WRONG, ids=str)
def test_a_wrong_value_is_refused_by_file_and_key(tmp_path, keys):
    value, message = WRONG[keys]
    plain = forgetting()
    put(plain, keys, value)
    with pytest.raises(TrainerError, match=message) as caught:
        read_forgetting(write(tmp_path, plain))
    assert "forgetting.json" in str(caught.value) and str(caught.value).endswith("measure again.")


@pytest.mark.parametrize("content", ["", '{"version": 1', "[]", "null"])
def test_a_file_that_is_not_one_object_is_refused(tmp_path, content):
    path = tmp_path / "forgetting.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TrainerError, match=r"forgetting\.json must be"):
        read_forgetting(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"loss":1}\n', r"`step` of .*metrics\.jsonl:1 must be a whole number"),
        ("metrics.jsonl", '{"step":1}\nx\n{"step":2}\n', r"metrics\.jsonl:2 must be one JSON object"),
        ("ledger.jsonl", '{"step":-1}\n', r"`step` of .*ledger\.jsonl:1"),
        ("config.yaml", "a: [", r"config\.yaml must be whole YAML"),
        ("provenance.json", "[]", r"provenance\.json must be one mapping"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, name, content, message):
    run_dir = write_run(tmp_path)
    (run_dir / name).write_text(content, encoding="utf-8")
    with pytest.raises(TrainerError, match=message):
        read_run(run_dir)


def test_a_series_passes_over_rows_without_it_and_counts_what_is_not_finite(tmp_path):
    rows = ({"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": math.nan}, {"step": 4, "loss": 1})
    found = Metrics(tmp_path, rows).series("loss")
    assert found.points == ((1.0, 2.0), (4.0, 1.0)) and found.num_left_out == 1
    assert Metrics(tmp_path, rows).series("loss", x="tokens_seen").points == ()
    with pytest.raises(TrainerError, match=r"`loss` of .*, step 5, must be a number, but is 'high'"):
        Metrics(tmp_path, ({"step": 5, "loss": "high"},)).series("loss")


def test_a_long_series_is_thinned_and_keeps_its_spikes_and_its_end():
    points = tuple((float(step), 9.0 if step == 777 else step / 1e5) for step in range(5000))
    kept = thinned(points)
    assert len(kept) <= 242 and (777.0, 9.0) in kept
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert list(kept) == sorted(kept)
