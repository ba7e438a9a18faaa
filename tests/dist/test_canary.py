"""Secrets that a run uses are in none of its files, of its cache, of its script or at its trackers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from launch.submit import check, hand_over
from tests.helpers.object_store import running_store
from tests.helpers.ranks import RankFailure, run_apart
from trainer.cli import _words_shown
from trainer.config.address import shown_address
from trainer.config.check import check_config
from trainer.config.store import compose_config
from trainer.errors import ConfigError

NAMED, TYPED, WORD = "canary-named-7c1e", "canary-typed-52ab", "canary-words-9f00"
STORE = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY0123456789",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+3e8d/of/the/store",
    "AWS_SESSION_TOKEN": "canary-session-11aa",
}
KEY = "canary" + "0" * 34
"""As long as a key of wandb's."""
SIZES = "model.tiny={hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"


def words_for(folder: Path, port: int) -> list[str]:
    trackers = ["wandb"] if importlib.util.find_spec("wandb") else []
    return [
        *("model=tiny", SIZES, "data=text", "data.seq_len=64", "train.max_steps=2", "zero.dtype=fp32"),
        *("train.global_batch_tokens=256", "checkpoint.every_steps=1", f"data.cache_dir={folder}/cache"),
        f"data.sources.corpus.path='http://me:${{oc.env:CANARY}}@127.0.0.1:{port}/bucket/rows.jsonl'",
        *("data.sources.stored.format=text", "data.sources.stored.path='s3://bucket/stored*.jsonl'"),
        *("cluster.environment.HF_TOKEN=${oc.env:CANARY}", f"cluster.environment.OTHER={TYPED}"),
        "log.mlflow.uri='http://me:${oc.env:CANARY}@host'",
        *(f"log.trackers=[{','.join(trackers)}]", f"run_dir={folder}/run"),
    ]


def holders(folder: Path, canary: str) -> list[Path]:
    """Return the files below a folder that hold a text."""
    return [p for p in folder.rglob("*") if p.is_file() and canary.encode() in p.read_bytes()]


def test_no_file_of_a_run_tells_a_secret(tmp_path: Path) -> None:
    """A copy of a rank's environment, an address with its password, a resolved configuration: each would be found."""
    pytest.importorskip("s3fs")
    with running_store() as store:
        rows = "".join(
            json.dumps({"text": f"Row {n} of a text that is long enough."}) + "\n" for n in range(200)
        )
        store.objects["bucket/stored-1.jsonl"] = rows.replace("Row", "Stored row").encode()
        store.objects["bucket/rows.jsonl"] = store.objects["/bucket/rows.jsonl"] = rows.encode()
        words = words_for(tmp_path, store.server_port)
        said = run_apart(
            [["prepare", *words], ["train", *words]],
            tmp_path,
            CANARY=NAMED,
            HF_TOKEN=NAMED,
            WANDB_API_KEY=KEY,
            AWS_ENDPOINT_URL=store.address,
            AWS_DEFAULT_REGION="us-east-1",
            **STORE,
        )
        asked = [path for path, _ in store.reads]
        secrets = [secret for secret in STORE.values() if any(secret in line for line in store.signed)]
    said = said.partition("\n")[2]
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir(), said
    assert "bucket/stored-1.jsonl" in asked and secrets == [
        STORE["AWS_ACCESS_KEY_ID"],
        STORE["AWS_SESSION_TOKEN"],
    ], "the store was asked with the canaries"
    for canary in (NAMED, KEY, *STORE.values()):
        assert canary not in said and holders(tmp_path, canary) == []
    typed = holders(tmp_path, TYPED)
    assert [path.name for path in typed] == ["config.yaml"], "what is typed stays in the configuration alone"
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in typed)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "HF_TOKEN: ${oc.env:CANARY}" in text and "me:${oc.env:CANARY}@127.0.0.1" in text


def test_a_job_script_names_the_variable_and_its_value_is_looked_up_in_the_job(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANARY", NAMED)
    monkeypatch.setenv("SINGLE", "it's $HOME")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("A text.\n")
    words = (
        "model=tiny",
        "data=text",
        "data.sources.corpus.path=rows.txt",
        "cluster=slurm_cpu",
        "train.max_steps=2",
    )
    named = ("cluster.environment.HF_TOKEN=a-${oc.env:CANARY}", "cluster.environment.B=${oc.env:SINGLE}")
    config = compose_config([*words, *named, f"run_dir={tmp_path}/run", "cluster.node_local_paths=[]"])
    ready = check(config, lambda: "not asked", is_dry=True)
    monkeypatch.setattr("launch.submit.hand_in", lambda script: 7)
    hand_over(ready)
    assert holders(tmp_path, NAMED) == []
    lines = [line for line in ready.script.splitlines() if line.startswith(("export HF_TOKEN", "export B="))]
    show = 'printf "%s|%s" "$HF_TOKEN" "$B"'
    shown = subprocess.run(["bash", "-c", "\n".join([*lines, show])], capture_output=True, text=True)
    assert shown.stdout == f"a-{NAMED}|it's $HOME"
    at = ready.script.index("for name in CANARY SINGLE; do")
    check_lines = ready.script[at : ready.script.index("done\n", at) + 5]
    stubs = 'say() { echo "$*"; }; note() { :; }; newest=; unset SINGLE\n'
    missing = subprocess.run(["bash", "-c", stubs + check_lines], capture_output=True, text=True)
    assert missing.returncode == 2 and "but SINGLE is not set on" in missing.stdout


def test_what_a_store_says_of_wrong_keys_tells_no_secret(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    with running_store() as store:
        store.denies = True
        words = words_for(tmp_path, store.server_port)
        with pytest.raises(RankFailure) as caught:
            run_apart(
                [["prepare", *words]],
                tmp_path,
                CANARY=NAMED,
                AWS_ENDPOINT_URL=store.address,
                AWS_DEFAULT_REGION="us-east-1",
                AWS_MAX_ATTEMPTS="1",
                **STORE,
            )
    said = str(caught.value)
    assert "may not" in said and "Traceback" not in said
    for canary in (NAMED, *STORE.values()):
        assert canary not in said.partition("\n")[2] and holders(tmp_path, canary) == []


@pytest.mark.parametrize("scheme", ["s3", "s3a", "gs"])
@pytest.mark.parametrize("keys", ["AKIA1:sec/ret", "${oc.env:A_KEY}:${oc.env:A_SECRET}"])
def test_keys_in_the_address_of_a_store_are_refused_without_being_shown(monkeypatch, scheme, keys) -> None:
    """A secret of AWS may have a slash, which hid it from the look for passwords; s3fs takes no keys there at all."""
    monkeypatch.setenv("A_KEY", "AKIA1")
    monkeypatch.setenv("A_SECRET", "sec/ret")
    address = f"{scheme}://{keys}@bucket/rows.jsonl"
    words = ["model=tiny", "data=text", f"data.sources.corpus.path='{address}'"]
    with pytest.raises(ConfigError, match="must be an address without the keys of a store") as caught:
        check_config(compose_config(words), 1)
    assert "sec/ret" not in str(caught.value) and f"{scheme}://bucket/rows.jsonl" in str(caught.value)
    assert "sec/ret" not in shown_address(f"s3://AKIA1:sec/ret@bucket/{scheme}@v1")
    assert shown_address(f"{scheme}://bucket/a:b/c@v1") == f"{scheme}://bucket/a:b/c@v1"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (f"cluster.environment.OTHER={WORD}", "cluster.environment.OTHER=<removed>"),
        (f"cluster.environment={{OTHER: {WORD}}}", "cluster.environment=<removed>"),
        ("cluster.environment.A=${oc.env:X}", "'cluster.environment.A=${oc.env:X}'"),
        (f"data.sources.a.path=s3://KEY:{WORD}@bucket/x", "data.sources.a.path=s3://<removed>@bucket/x"),
        ("optim.lr=1e-4", "optim.lr=1e-4"),
    ],
)
def test_words_are_written_down_without_values_of_variables(word: str, shown: str) -> None:
    assert WORD not in _words_shown(["train", word])
    assert _words_shown(["train", word]).replace("'", "") == f"train {shown}".replace("'", "")
