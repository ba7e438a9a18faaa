"""The page as text: complete, well formed, safe, and honest about what is missing."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from tests.helpers.run_files import forgetting, write_run
from tests.house.tree import ROOT
from trainer.command.evaluate import gate_table
from trainer.errors import TrainerError
from trainer.metrics.jsonl import JsonlSink
from trainer.report.build import build_report
from trainer.report.element import element, join

EMPTY = {"meta", "link"}


class Outline(HTMLParser):
    """Collects tags, attributes and text; every tag must be closed by its own end."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.found, self.words = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.found += attrs

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def outline(run_dir):
    return Outline(build_report(run_dir).read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_holds_every_section(tmp_path):
    found = outline(write_run(tmp_path))
    sections = ["changes", "curves", "replay", "training", "kl", "recovery", "origin"]
    assert [value for key, value in found.found if key == "id" and value in sections] == sections
    assert found.tags.count("svg") >= 9


def test_every_figure_is_xml_with_a_title_and_units(tmp_path):
    page = build_report(write_run(tmp_path)).read_text(encoding="utf-8")
    for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ElementTree.fromstring(drawn)
        assert root.get("role") == "img" and root.get("aria-label") == root.findtext("title")
        assert [text for text in root.iter("text") if text.get("class") == "unit"]
        assert "nan" not in drawn.lower().replace("tenant", "")


@pytest.mark.parametrize(("half_nats", "num_ends"), [(0.1, 2), (1e-5, 0)])
def test_ends_of_an_interval_are_drawn_where_the_mark_does_not_hide_them(tmp_path, half_nats, num_ends):
    """Within a circle they would make it the square of another role."""
    found = forgetting()
    change = found["sets"][0]["change_nats"]
    found["sets"][0] |= {"change_low": change - half_nats, "change_high": change + half_nats}
    run_dir = write_run(tmp_path)
    (run_dir / "forgetting.json").write_text(json.dumps(found), encoding="utf-8")
    page = build_report(run_dir).read_text(encoding="utf-8")
    drawn = re.search(r'<g class="role-target">.*?</g>', page, re.DOTALL)
    assert drawn.group().count('class="bar"') == 1 + num_ends


def test_a_run_of_an_installed_package_does_not_say_that_git_is_missing(tmp_path):
    run_dir = write_run(tmp_path)
    path = run_dir / "provenance.json"
    told = json.loads(path.read_text()) | {"git": None, "packages": {"flash-attn": None}}
    path.write_text(json.dumps(told), encoding="utf-8")
    text = " ".join(outline(run_dir).text.split())
    assert "git not a checkout" in text and "packages flash-attn not installed" in text


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(tmp_path):
    found = outline(write_run(tmp_path))
    assert "script" not in found.tags
    assert not [key for key, _ in found.found if key in ("src", "srcset") or key.startswith("on")]
    assert [value for key, value in found.found if key == "href"] == ["data:,"]


def test_names_from_files_are_text_wherever_they_stand(tmp_path):
    evil = '"><script>alert(1)</script>&amp;'
    run_dir = write_run(tmp_path, (evil, "general"))
    found = outline(run_dir)
    assert "script" not in found.tags and found.text.count(evil) >= 4
    plain = forgetting()
    plain["run"] |= dict.fromkeys(("name", "base", "base_digest", "tuned", "device", "dtype"), evil)
    plain["kl"][0]["prompts"] = plain["recovery"]["set"] = plain["replay"]["schedule"] = evil
    (run_dir / "forgetting.json").write_text(json.dumps(plain), encoding="utf-8")
    (run_dir / "config.yaml").write_text(json.dumps({"name": evil, "kind": evil}), encoding="utf-8")
    (run_dir / "provenance.json").write_text(json.dumps({evil: {evil: evil}}), encoding="utf-8")
    assert "script" not in outline(run_dir).tags


def test_a_run_that_was_not_measured_says_so_and_how_to_measure(tmp_path):
    run_dir = tmp_path / "quickstart"
    run_dir.mkdir()
    real = ROOT / "benchmarks/results/smollm2_135m_2_cpu_ranks.metrics.jsonl"
    (run_dir / "metrics.jsonl").write_bytes(real.read_bytes())
    text = outline(run_dir).text
    assert "Held-out loss of python_reference went from 2.805 to 2.473 nats (steps 0 to 16)" in text
    assert "has no forgetting.json" in text and f"palimpsest report run_dir={run_dir}" in text
    assert "No replay was recorded" in text and "There is no config.yaml" in text


@pytest.mark.parametrize("name", ["forgetting.json", "config.yaml", "provenance.json"])
def test_one_file_alone_gives_a_page(tmp_path, name):
    whole = write_run(tmp_path / "whole")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / name).write_bytes((whole / name).read_bytes())
    text = outline(tmp_path / "alone").text
    assert "metrics.jsonl has no held-out loss" in text and "metrics.jsonl has no training step" in text


def test_a_measurement_without_sets_replay_or_recovery_gives_a_page(tmp_path):
    run_dir = write_run(tmp_path)
    plain = forgetting() | {"sets": [], "kl": [], "recovery": None, "replay": None}
    (run_dir / "forgetting.json").write_text(json.dumps(plain), encoding="utf-8")
    found = outline(run_dir)
    assert "No held-out set was measured." in found.text and ("id", "recovery") not in found.found


def task(name, base, tuned, **others):
    change = None if None in (base, tuned) else tuned - base
    scores = {"base": base, "tuned": tuned, "change": change, "base_stderr": 0.01, "tuned_stderr": None}
    return {"task": name, "metric": "acc", **scores, "higher_is_better": True, "num_documents": 1200} | others


def test_benchmark_tasks_are_a_table_and_only_where_they_were_run(tmp_path):
    run_dir = write_run(tmp_path)
    assert ("id", "tasks") not in outline(run_dir).found
    rows = [task("<b>arc", 0.512, 0.4871), task("wiki", 21.5, None, metric="ppl", higher_is_better=False)]
    (run_dir / "forgetting.json").write_text(json.dumps(forgetting() | {"tasks": rows}), encoding="utf-8")
    found = outline(run_dir)
    assert ("id", "tasks") in found.found
    for shown in (
        "<b>arc",
        "\u22120.0249",
        "0.5120 \u2192 0.4871",
        "0.0100, none",
        "1,200",
        "not finite",
        "lower",
    ):
        assert shown in found.text, shown


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        ({"base": "x"}, "tasks[0].base"),
        ({"higher_is_better": 1}, "tasks[0].higher_is_better"),
        ({"task": None}, "tasks[0].task"),
    ],
)
def test_a_broken_score_is_named(tmp_path, edit, key):
    run_dir = write_run(tmp_path)
    plain = forgetting() | {"tasks": [task("arc", 0.5, 0.6) | edit]}
    (run_dir / "forgetting.json").write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(TrainerError, match=f"`{re.escape(key)}` of .* must be"):
        build_report(run_dir)


def test_numbers_that_are_not_finite_are_counted_not_drawn(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for step, loss in enumerate([3.0, float("nan"), float("inf"), 2.0]):
        sink.write(step, {"loss": loss})
    sink.close("finished")
    assert "2 values that are not finite are left out." in outline(tmp_path).text


def test_many_sources_share_a_figure_only_as_far_as_colours_go(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        sink.write(step, {"loss": 2.0, **{f"loss/source{number}": 2.0 for number in range(9)}})
    sink.close("finished")
    text = outline(tmp_path).text
    assert "The first 5 of 9 sources." in text and "source4" in text and "source5" not in text


def test_what_has_one_value_is_said_and_has_no_empty_axis(tmp_path):
    """A run of six steps, which logs its last alone; a second value is a curve."""
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(6, {"loss": 3.25, "loss/code": 3.5, "loss/text": 3.0, "grad_norm": 1.5, "eval/code": 2.5})
    sink.close("finished")
    found = outline(tmp_path)
    assert "svg" not in found.tags and found.tags.count("figure") == 3
    assert (
        "One value, at optimizer step 6: all sources 3.250, code 3.500, text 3 (nats per token)."
        in found.text
    )
    assert "One value, at optimizer step 6: gradient norm 1.500 (L2 norm before clipping)." in found.text
    assert "One value, at optimizer step 6: code 2.500 (nats per token)." in found.text
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    assert "held-out loss was logged once" in found.text and "dashed" not in found.text
    sink.write(12, {"grad_norm": 1.25})
    sink.close("finished")
    assert outline(tmp_path).tags.count("svg") == 1


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path):
    run_dir = write_run(tmp_path)
    before = build_report(run_dir).read_bytes()
    (run_dir / "forgetting.json").write_text("{", encoding="utf-8")
    with pytest.raises(TrainerError):
        build_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == before
    assert not list(run_dir.glob(".*tmp")) and not list(run_dir.glob("*.tmp"))


def test_the_page_depends_on_the_files_alone(tmp_path):
    run_dir = write_run(tmp_path)
    assert build_report(run_dir).read_bytes() == build_report(run_dir).read_bytes()


def test_text_is_escaped_and_elements_are_not():
    assert element("p", "<b>", element("b", "a & b"), None, title='"x"', hidden=True, class_=None) == (
        '<p title="&quot;x&quot;" hidden>&lt;b&gt;<b>a &amp; b</b></p>'
    )
    assert join("<", element("br")) == "&lt;<br/>"


def scored(step, value, error):
    return {"step": step, "tasks/arc/acc": value, "tasks/arc/acc_stderr": error, "tasks_share": 0.1}


def answered(step, number, answer, has_ended=True):
    texts = {"origin": "chat", "prompt": f"<i>Q{number}", "answer": answer, "expected": ""}
    return {"step": step, "number": number, **texts, "num_tokens": 2, "has_ended": has_ended}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_scores_through_training_are_a_curve_with_intervals(tmp_path):
    run_dir = write_run(tmp_path)
    write_rows(
        run_dir / "metrics.jsonl", [scored(0, 0.3, 0.05), scored(50, 0.5, 0.05), scored(80, 0.45, 0.0)]
    )
    put_off = {"event": "put_off", "step": 40, "why": "time"}
    (run_dir / "ledger.jsonl").write_text(json.dumps(put_off) + "\n", encoding="utf-8")
    page = build_report(run_dir).read_text(encoding="utf-8")
    part = page[page.index('id="tasks"') : page.index('id="curves"')]
    assert part.count('class="bar"') == 2, "two of three scores have a standard error"
    assert "1.96 standard errors" in part and "put off 1 time:" in part and "base 0.3" in part
    assert "acc from 0.3000 to 0.4500" in part
    # The axis holds the bars: 0.5 + 1.96 x 0.05 = 0.598.
    assert ">0.60<" in part or ">0.6<" in part


def test_the_distance_from_the_base_is_drawn_where_it_was_taken(tmp_path):
    run_dir = write_run(tmp_path)
    assert "KL to the base</b>" not in build_report(run_dir).read_text(encoding="utf-8")
    rows = [{"step": step, "eval/a": 2.0, "kl/a": 0.1 * step, "forgetting": -0.1} for step in (1, 2)]
    write_rows(run_dir / "metrics.jsonl", rows)
    page = build_report(run_dir).read_text(encoding="utf-8")
    assert "KL to the base</b>" in page and "a from 0.1000 to 0.2000" in page
    assert "mean of sources from \u22120.1000 to \u22120.1000; base 0" in page


def test_answers_stand_beside_those_of_the_base(tmp_path):
    run_dir = write_run(tmp_path)
    assert ("id", "answers") not in outline(run_dir).found
    rows = [answered(0, 0, "b0"), answered(0, 1, "b1"), answered(5, 0, "m0"), answered(9, 0, "t0", False)]
    write_rows(run_dir / "samples.jsonl", [*rows, answered(9, 2, "t2")])
    text = outline(run_dir).text
    part = text[text.index("Prompt") :]
    for shown in ("<i>Q0", "b0", "t0 [...]", "<i>Q2", "not recorded", "Step 9"):
        assert shown in part, shown
    assert "m0" not in text and "those of steps 5 as well" in text and "Held-out text" not in part


def test_a_damaged_answer_is_named_by_its_line(tmp_path):
    run_dir = write_run(tmp_path)
    write_rows(run_dir / "samples.jsonl", [answered(0, 0, "x"), {"step": 1, "number": 0}])
    with pytest.raises(TrainerError, match=r"`origin` of .*samples.jsonl:2 must be str, but is None"):
        build_report(run_dir)


def test_two_runs_of_one_experiment_are_told_apart_and_tokens_are_put_in_relation(tmp_path):
    """Reports of two runs had one heading; report, card and mixture told three numbers of tokens."""
    run_dir = write_run(tmp_path / "lora")
    name = json.loads((run_dir / "forgetting.json").read_text())["run"]["name"]
    seen = json.loads((run_dir / "forgetting.json").read_text())["run"]["tokens_seen"]
    with (run_dir / "ledger.jsonl").open("a") as ledger:
        event = {"event": "saved", "step": 160, "time": 1.0, "tokens_seen": seen}
        ledger.write(
            json.dumps({**event, "tokens_by_source": {"a": 5700}, "targets_by_source": {"a": 2600}}) + "\n"
        )
    text = outline(run_dir).text
    assert f"Run report: {name} (lora)" in text and str(run_dir) in text
    assert f"{seen:,}, padding included; 5,700 of the data, of which 2,600 are learnt" in text


def test_every_column_of_the_gate_has_a_heading():
    assert all(str(column.header) for column in gate_table([]).columns)


def test_what_was_chosen_of_replay_is_told_and_drawn(tmp_path):
    run_dir = write_run(tmp_path)
    event = {
        **{
            "event": "chose",
            "pool": "old",
            "begin": 3,
            "packs": [4, 2, 9],
            "num_wanted": 2,
            "num_candidates": 8,
        },
        **{"rise_chosen": 0.25, "rise_candidates": -0.125},
    }
    with (run_dir / "ledger.jsonl").open("a") as file:
        for step in (100, 200):
            file.write(json.dumps(event | {"step": step}) + "\n")
    rows = [{"step": step, "replay_rise_chosen/old": 0.25, "replay_rise/old": -0.125} for step in (100, 200)]
    write_rows(run_dir / "metrics.jsonl", rows)
    text = outline(run_dir).text
    assert (
        "Replay packs were chosen 2 times by what the model was losing. At step 200, 2 of 8 packs of old"
        in text
    )
    assert "+0.2500 nats a token from the base's, and -0.1250 on all that were scored" in text
    assert "Loss on replay over the base" in text
