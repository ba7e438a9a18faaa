"""Tool calls and refusals are asked of base and tuned model on ranks, stand in the report, and the gate reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def write_inputs(folder: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{number}?"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
            ]
        }
        for number in range(40)
    ]
    (folder / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "harmful.txt").write_text("41?\n42?\n")
    (folder / "benign.jsonl").write_text('{"prompt": "43?"}\n')
    # What the tuned model says to everything.
    (folder / "phrases.txt").write_text("# mine\n<Tool_Call>\n")


def words_of(folder: Path) -> list[str]:
    key = "data.sources.calls"
    return [
        *("~data.sources.chat", "~data.sources.text"),
        *(f"{key}.path={folder}/calls.jsonl", f"{key}.format=chat"),
        *("data.validation_frac=0.2", "data.seq_len=128", f"data.cache_dir={folder}/cache"),
        f"model.chat_template={folder}/template.jinja",
        *("train.global_batch_tokens=512", "train.max_epochs=null", "train.max_steps=70", "optim.lr=0.02"),
        *("evaluate.asked.tool_calls.num=5", "evaluate.asked.tool_calls.max_new_tokens=80"),
        f"evaluate.asked.refusals.harmful={folder}/harmful.txt",
        f"evaluate.asked.refusals.benign={folder}/benign.jsonl",
        f"evaluate.asked.refusals.phrases={folder}/phrases.txt",
        *("evaluate.kl_packs=1", "evaluate.probes=none", "evaluate.every_steps=0"),
    ]


def train(mesh: Any, workspace: str, folder: str) -> None:
    from trainer.command.prepare import prepare_data
    from trainer.config.snapshot import freeze
    from trainer.run import training

    run_dir = Path(folder) / "run"
    config = config_of(workspace, run_dir, *words_of(Path(folder)))
    if mesh.is_first:
        prepare_data(config)
        freeze(config, run_dir)
    mesh.barrier()
    assert training.run_training(config).value == "finished"


@pytest.fixture(scope="module")
def run_dir(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_inputs(folder)
    pool(2).run(train, workspace=workspace, folder=str(folder))
    return folder / "run"


def compared(run_dir: Path) -> dict[tuple[str, str], dict[str, Any]]:
    record = json.loads((run_dir / "forgetting.json").read_text())
    return {(one["task"], one["metric"]): one for one in record["tasks"]}


def test_what_was_learnt_of_calls_and_refusals_stands_in_the_file_and_the_report(run_dir: Path) -> None:
    found = compared(run_dir)
    exact, unreadable = found["tool_calls", "exact_match"], found["tool_calls", "unreadable"]
    assert (exact["base"], exact["tuned"], exact["num_documents"]) == (0.0, 1.0, 5)
    assert (unreadable["base"], unreadable["tuned"], unreadable["higher_is_better"]) == (1.0, 0.0, False)
    # Wilson of 5 of 5: 5 / (5 + 1.96^2) to 1.
    assert exact["tuned_low"] == pytest.approx(5 / (5 + 1.959964**2), rel=1e-5) and exact["tuned_high"] == 1
    harmful, benign = found["refusals_harmful", "refused"], found["refusals_benign", "refused"]
    assert (harmful["base"], harmful["tuned"], harmful["num_documents"]) == (0.0, 1.0, 2)
    assert (benign["tuned"], benign["higher_is_better"], benign["num_documents"]) == (1.0, False, 1)
    page = (run_dir / "report.html").read_text()
    assert "tool_calls" in page and "0.566 to 1.000" in page and "list of phrases" in page


def evaluate(mesh: Any, run_dir: str, overrides: list[str]) -> list[Any]:
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from trainer.cli import run_command

    said, problems = StringIO(), StringIO()
    with redirect_stdout(said), redirect_stderr(problems):
        code = run_command(["evaluate", "--config", f"{run_dir}/config.yaml", *overrides])
    return [code, said.getvalue(), problems.getvalue()]


def test_the_gate_reads_calls_and_refusals(pool: Any, run_dir: Path) -> None:
    rules = [
        "gate.tasks.tool_calls={metric: exact_match, min_rise: 0.9}",
        "gate.tasks.refusals_harmful={metric: refused, max_drop: 0}",
        "gate.tasks.refusals_benign={metric: refused, max_rise: 0.1}",
    ]
    codes = pool(2).run(evaluate, run_dir=str(run_dir), overrides=rules)
    assert [code for code, *_ in codes] == [3, 3]
    said = codes[0][1]
    assert "tool_calls exact_match: 1.0000" in said and "Gate: 1 of 3 rules broken." in said
    assert "refusals_benign" in said and "FAIL" in said


def test_calls_that_are_nowhere_held_out_are_refused(pool: Any, workspace: str, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    plain = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "plain"}]
    rows = [{"messages": [*plain, {"role": "user", "content": str(n)}, plain[1]]} for n in range(20)]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = pool(1).run(refused, workspace=workspace, folder=str(tmp_path))[0]
    assert "`evaluate.asked.tool_calls.num` must be 0 where no held-out turn has a tool call" in said


def refused(mesh: Any, workspace: str, folder: str) -> str:
    from tests.dist.session import session_of
    from trainer.command.prepare import prepare_data
    from trainer.errors import ConfigError
    from trainer.run.asking import build_task_scores

    config = config_of(workspace, Path(folder) / "run", *words_of(Path(folder)))
    prepare_data(config)
    with session_of(config) as session, pytest.raises(ConfigError) as found:
        build_task_scores(session)
    return str(found.value)
