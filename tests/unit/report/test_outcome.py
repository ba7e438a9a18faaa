"""The first screen: what is kept, lost and gained, in words; of preferences and reward models too."""

import json

import pytest

from tests.helpers.run_files import forgetting, write_run
from trainer.evaluate.forgotten import ForgottenDocument, TextPart, forgotten_text
from trainer.evaluate.layer_drift import DriftGroup, DriftRecord
from trainer.metrics.jsonl import JsonlSink
from trainer.report.outcome import outcome
from trainer.report.page import build_page
from trainer.report.record import read_run


def one_set(name, role, change, low, high, num_documents=30):
    changes = {"change_nats": change, "change_low": low, "change_high": high}
    of = {"name": name, "role": role, "num_documents": num_documents, "num_targets": 900, "num_bytes": 0}
    nats = {
        "base_nats": 2.0,
        "tuned_nats": 2.0 + change,
        "base_bits_per_byte": None,
        "tuned_bits_per_byte": None,
    }
    return of | changes | nats


def run_with(tmp_path, **plain):
    run_dir = write_run(tmp_path / "run")
    (run_dir / "forgetting.json").write_text(json.dumps(forgetting() | {"kl": [], **plain}), encoding="utf-8")
    return run_dir


def lists(found):
    names = {key: [one.name for one in getattr(found, key)] for key in ("kept", "lost", "gained", "unknown")}
    return {key: of for key, of in names.items() if of}


def test_what_leaves_zero_out_is_lost_or_gained_and_kept_is_what_leaves_out_a_loss_above_the_margin(tmp_path):
    """A wide range counted as kept: absence of evidence."""
    sets = [
        one_set("new", "target", -0.5, -0.6, -0.4),
        one_set("old", "replay", 0.004, 0.001, 0.008),
        one_set("edge", "probe", 0.02, -0.01, 0.05),
        one_set("wide", "probe", 0.02, -0.01, 0.07),
        one_set("book", "probe", 0.3, None, None, 2),
    ]
    probes = [one_set("Maths", "probe", 0.06, 0.04, 0.08), one_set("German", "probe", 0.02, 0.005, 0.035)]
    left_out = [{"name": "laws.txt", "why": "not measured: it is trained on."}]
    found = outcome(read_run(run_with(tmp_path, sets=sets, probes=probes, left_out=left_out)))
    assert lists(found) == {
        "kept": ["edge", "old"],
        "lost": ["Maths", "German"],
        "gained": ["new"],
        "unknown": ["book", "wide"],
    }
    assert found.lost[0].words == "lost 0.060 nats, 0.040 to 0.080: the right next word is 6 % less likely"
    assert found.gained[0].words.startswith(
        "gained 0.500 nats, 0.400 to 0.600: the right next word is 65 % more"
    )
    assert found.kept[0].words == "somewhere between 0.010 gained and 0.050 lost"
    assert (
        found.verdict
        == "It got better at new, but it lost on Maths and German; of book and wide it is not known."
    )
    assert [one.words for one in found.unknown] == [
        "its loss rose by 0.300 nats, but 2 documents cannot tell a change from chance: it takes 5",
        "somewhere between 0.010 gained and 0.070 lost; about 68 documents would tell, and it had 30",
    ]
    assert found.unmeasured == ["laws.txt: not measured: it is trained on."]


@pytest.mark.parametrize(
    ("change", "low", "high", "documents"),
    [
        (0.0, -0.1, 0.1, "about 120"),  # 30 x (0.1 / 0.05)^2, and never known to be lost
        (
            0.02,
            -0.01,
            0.07,
            "about 68",
        ),  # lost, 30 x (0.03 / 0.02)^2 = 67.5; kept takes 30 x (0.05 / 0.03)^2 = 83.3
        (0.01, -0.05, 0.07, "about 68"),  # kept, 30 x (0.06 / 0.04)^2 = 67.5; lost takes 30 x 6^2
        (0.1, -0.3, 0.5, "about 480"),  # lost, 30 x (0.4 / 0.1)^2: that it is kept could never come out
        (-0.05, -0.5, 0.4, "about 610"),  # kept, 30 x (0.45 / 0.1)^2 = 607.5
    ],
)
def test_how_many_documents_would_tell_follows_from_the_root_of_their_number(
    tmp_path, change, low, high, documents
):
    found = outcome(read_run(run_with(tmp_path, sets=[one_set("a", "probe", change, low, high)])))
    assert f"; {documents} documents would tell, and it had 30" in found.unknown[0].words


@pytest.mark.parametrize(
    ("sets", "verdict"),
    [
        (
            [one_set("a", "target", -0.5, -0.6, -0.4)],
            "It got better at a, and nobody measured what else it knew.",
        ),
        (
            [one_set("a", "target", 0.5, 0.4, 0.6), one_set("b", "probe", 0.0, -0.04, 0.04)],
            "It got worse at a, and it kept all else that was measured.",
        ),
        (
            [one_set("a", "target", -0.01, -0.1, 0.08), one_set("b", "probe", 0.0, -0.1, 0.1)],
            "Whether it got better at a is not known, and whether it kept anything else is not known: too little text "
            "was measured to tell.",
        ),
        (
            [
                one_set("a", "target", -0.5, -0.6, -0.4),
                one_set("b", "replay", -0.2, -0.3, -0.1),
                one_set("c", "probe", 0.0, -0.1, 0.1),
                one_set("d", "probe", 0.0, -0.04, 0.04),
            ],
            "It got better at a, and it kept 2 of 3 other things that were measured; of the rest it is not known.",
        ),
        (
            [one_set(name, "probe", 0.5, 0.4, 0.6) for name in "vwxyz"],
            "It lost on v, w, x and 2 more.",
        ),
        ([], "What this run kept, lost and gained was not measured."),
    ],
)
def test_the_verdict_is_a_sentence(tmp_path, sets, verdict):
    assert outcome(read_run(run_with(tmp_path, sets=sets))).verdict == verdict


def test_what_was_taught_alone_says_how_to_measure_the_rest(tmp_path):
    found = outcome(read_run(run_with(tmp_path, sets=[one_set("a", "target", -0.5, -0.6, -0.4)])))
    assert "evaluate.probes=all" in found.unmeasured[0]


def ranked(run_dir, values, kind):
    """A run of pairs that logged these accuracies with intervals of 0.1 to either side."""
    config = {
        "name": "pairs",
        "objective": {"kind": kind},
        "data": {"sources": {"p": {"format": "preference"}}},
    }
    (run_dir / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    (run_dir / "metrics.jsonl").unlink()
    sink = JsonlSink(run_dir / "metrics.jsonl")
    for step, value in values:
        row = {
            "eval_accuracy/p": value,
            "eval_accuracy_low/p": value - 0.1,
            "eval_accuracy_high/p": value + 0.1,
        }
        sink.write(step, row)
    sink.close("finished")


@pytest.mark.parametrize(
    ("values", "where", "words"),
    [
        ([(8, 0.7)], "gained", "60.0\u202f% to 80.0\u202f%, against 50.0\u202f% by chance"),
        ([(8, 0.55)], "unknown", "against 50.0\u202f% by chance"),
        ([(0, 0.65), (8, 0.7)], "unknown", "against 65.0\u202f% before"),
        ([(0, 0.65), (8, 0.74)], "kept", "64.0\u202f% to 84.0\u202f%"),
        ([(0, 0.65), (8, 0.5)], "lost", "40.0\u202f% to 60.0\u202f%"),
    ],
)
def test_a_reward_model_is_told_by_its_pairs_and_says_what_cannot_be_known(tmp_path, values, where, words):
    run_dir = run_with(tmp_path)
    (run_dir / "forgetting.json").unlink()
    ranked(run_dir, values, "reward")
    found = outcome(read_run(run_dir))
    assert lists(found)[where] == ["ranking held-out pairs of p"] and words in getattr(found, where)[0].words
    assert "a reward model answers with a score and no words" in found.unmeasured[0]
    page = build_page(read_run(run_dir))
    assert "ranking held-out pairs of p" in page and "it leaves out a loss of more than 0.05 nats" in page


def test_of_preferences_the_pairs_are_what_was_taught_and_answers_have_their_own_line(tmp_path):
    run_dir = run_with(
        tmp_path, sets=[one_set("p", "target", 0.2, 0.1, 0.3), one_set("q", "probe", 0.0, -0.1, 0.1)]
    )
    ranked(run_dir, [(8, 0.8)], "preference")
    found = outcome(read_run(run_dir))
    assert lists(found)["lost"] == ["chosen answers of p"]
    assert found.verdict == (
        "It got better at ranking held-out pairs of p, but it lost on chosen answers of p; of q it is not known."
    )


def test_of_preferences_alone_nothing_else_is_said_to_be_kept(tmp_path):
    run_dir = run_with(tmp_path, sets=[one_set("p", "target", -0.2, -0.3, -0.1)])
    ranked(run_dir, [(8, 0.8)], "preference")
    found = outcome(read_run(run_dir))
    assert (
        found.verdict
        == "It got better at ranking held-out pairs of p, and nobody measured what else it knew."
    )
    assert lists(found)["gained"] == ["ranking held-out pairs of p", "chosen answers of p"]


def test_a_score_is_better_by_its_own_direction(tmp_path):
    def task(name, base, tuned, higher):
        errors = {"base_stderr": 0.03, "tuned_stderr": 0.04, "num_documents": 200}
        of = {"task": name, "metric": "m", "higher_is_better": higher}
        return of | {"base": base, "tuned": tuned, "change": tuned - base} | errors

    tasks = [task("acc", 0.5, 0.65, True), task("ppl", 2.0, 2.15, False), task("small", 0.5, 0.59, True)]
    tasks += [task("wide", 0.5, 0.51, True), task("near", 5.0, 5.002, False)]
    found = outcome(read_run(run_with(tmp_path, sets=[], tasks=tasks)))
    # Half the range is 1.96 x 0.05 = 0.098: 0.59 may be 0.008 less, within 0.02; 5.1 is 0.1 more, 2 % of 5.
    assert lists(found) == {
        "kept": ["Benchmark near", "Benchmark small"],
        "lost": ["Benchmark ppl"],
        "gained": ["Benchmark acc"],
        "unknown": ["Benchmark wide"],
    }


def test_documents_that_lost_are_text_and_darker_where_more_was_lost(tmp_path):
    evil = "<script>x</script>"
    run_dir = run_with(tmp_path)
    parts = [("a", None), (evil, 2.5), ("b", 0.7), ("c", 0.05), ("d", -3.0)]
    shown = tuple(TextPart(text, rise) for text, rise in parts)
    one = ForgottenDocument(evil, 4, 1.0, 1.5, 40, 300, 7, shown, True)
    (run_dir / "forgotten_documents.json").write_text(
        forgotten_text("step-00000160", [one]), encoding="utf-8"
    )
    page = build_page(read_run(run_dir))
    assert "<script>" not in page
    assert '<span class="lost4" title="+2.50 nats">&lt;script&gt;x&lt;/script&gt;</span>' in page
    assert '<span class="lost2" title="+0.70 nats">b</span>cd' in page
    assert "document 5: +0.500 nats per token (1.000 \u2192 1.500, 40 learnt tokens)" in page
    assert "Shown from token 8 of 300 on" in page
    (run_dir / "forgotten_documents.json").write_text(
        forgotten_text("step-00000080", [one]), encoding="utf-8"
    )
    assert "lost4" not in build_page(read_run(run_dir)).partition("</style>")[2], "of another checkpoint"


def test_drift_is_drawn_by_layer_or_says_why_not(tmp_path):
    run_dir = run_with(tmp_path)
    groups = (
        DriftGroup(0, "attention", 3.0, 5.0),
        DriftGroup(1, "attention", 1.0, 5.0),
        DriftGroup(None, "head", 0.0, 1.0),
    )
    (run_dir / "layer_drift.json").write_text(DriftRecord("step-00000160", groups, 0.25).to_text())
    page = build_page(read_run(run_dir))
    assert (
        "layer 0 attention 60.0\u202f%; layer 1 attention 20.0\u202f%" in page
        and "the change is 25.0\u202f%" in page
    )
    assert "var(--lost) 100%" in page and "var(--lost) 33%" in page
    assert "by layer and checkpoint" not in page
    before = DriftRecord(
        "step-00000080", (DriftGroup(0, "attention", 0.5, 5.0), DriftGroup(0, "MLP", 0.0, 12.0)), 0.1
    )
    (run_dir / "layer_drift.json").write_text(
        DriftRecord("step-00000160", groups, 0.25, earlier=(before,)).to_text()
    )
    page = build_page(read_run(run_dir))
    # 0.5 over the root of 25 + 144.
    assert (
        "checkpoint. layer 0 step 80 3.8\u202f%; layer 0 step 160 60.0\u202f%; layer 1 step 160 20.0\u202f%"
        in page
    )
    (run_dir / "layer_drift.json").write_text(DriftRecord("step-00000160", why="no <files>.").to_text())
    assert "Not measured: no &lt;files&gt;." in build_page(read_run(run_dir))
