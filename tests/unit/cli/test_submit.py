"""`palimpsest submit` as a person meets it; SLURM's commands are scripts that note how they were called."""

import os
import sys

import pytest

from tests.helpers.calls import MANY_CALLS, calls_without_torch
from tests.house.tree import ROOT
from trainer.cli import run_command
from trainer.config.store import load_config
from trainer.metrics.jsonl import read

LLAMA = [
    "model=benchmark",
    f"model.path={ROOT / 'benchmarks/shapes/llama3_8b'}",
    "model.tokenizer=../tokenizer",
]
DATA = ["data=text", "data.sources.corpus.path=../corpus.txt", "train.max_steps=10"]
NODES = ["cluster=slurm", "cluster.num_nodes=2", "train.global_batch_tokens=262144", "cluster.gpu_gib=141"]
OWN = "cluster.node_local_paths=[/node,/dev/shm]"  # not where the tests write
RUN = [*LLAMA, *DATA, *NODES, OWN, "run_dir=/proc/shared/first"]  # nobody can make that
SINFO = "main*|up|4|gpu:h100:8|128|1-00:00:00"


@pytest.fixture
def slurm(here, tmp_path, monkeypatch):
    """Put sinfo, sbatch and squeue on the PATH; return the file that notes submissions."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (tmp_path / "corpus.txt").write_text("a text")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").touch()
    for name, body in (
        ("sinfo", f"echo '{SINFO}'"),
        ("sbatch", f'echo "$*" >>{calls}; env | grep -E "^(SBATCH|SLURM)_" >>{calls}; echo 4711'),
        ("squeue", "exit 1"),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return calls


@pytest.fixture
def nowhere(here, monkeypatch):
    """Leave only a PATH without SLURM."""
    monkeypatch.setenv("PATH", "")


def local(tmp_path, *overrides):
    """Return a submission into a folder that this machine has."""
    shared = ["cluster.node_local_paths=[/nowhere]", f"run_dir={tmp_path}/run"]
    return ["submit", *LLAMA, *DATA, *NODES, *shared, *overrides]


def test_it_freezes_renders_and_submits_one_script(slurm, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "another")
    assert run_command(local(tmp_path)) == 0
    run_dir = tmp_path / "run"
    assert slurm.read_text() == f"--parsable {run_dir}/job.sh\n", "a variable of another job reached sbatch"
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "attempts.jsonl",
        "config.yaml",
        "job.sh",
        "logs",
    ]
    frozen = load_config(run_dir / "config.yaml")
    assert (frozen.cluster.num_nodes, frozen.cluster.ranks_per_node) == (2, 8)
    script = (run_dir / "job.sh").read_text()
    assert f"#SBATCH --chdir={here}\n" in script and f"{sys.executable} -m trainer train --config" in script
    assert [line["event"] for line in read(run_dir / "attempts.jsonl")] == ["submitted", "queued"]
    shown = capsys.readouterr().out
    assert "16 ranks on 2 nodes" in shown and "Memory: " in shown and "Job 4711." in shown


def test_a_dry_run_prints_the_script_and_changes_nothing(slurm, here, tmp_path, capsys):
    assert run_command([*local(tmp_path), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("#!/bin/bash\n") and shown.out.endswith('exit "$code"\n')
    assert "16 ranks on 2 nodes" in shown.err
    assert not (tmp_path / "run").exists() and not slurm.exists() and [*here.iterdir()] == []


def test_without_slurm_the_script_can_still_be_seen(nowhere, capsys):
    assert run_command(["submit", *RUN, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert (
        "#SBATCH --nodes=2\n" in shown.out and "The site was not asked: there is no SLURM here." in shown.err
    )


def test_it_needs_no_torch_and_is_little_work(nowhere, here):
    """A second or two on the processor."""
    assert calls_without_torch(["submit", *RUN, "--dry-run"], here) < MANY_CALLS


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["cluster=local"], "`cluster.scheduler` must be slurm to submit, but is 'none' instead."),
        (["cluster.ranks_per_node=0"], "`cluster.ranks_per_node` must be at least 1 to submit"),
        (["cluster.gpus_per_node=4"], "`cluster.ranks_per_node` must be at most the 4 GPUs of a node"),
        (["cluster.partition=b200"], "`cluster.partition` must be one of main, but is 'b200' instead."),
        (["cluster.num_nodes=8"], "`cluster.num_nodes` must be at most the 4 such nodes of partition main"),
        (["train.global_batch_tokens=100000"], "`train.global_batch_tokens` must be a multiple of ranks"),
        (
            ["run_dir=/node/first"],
            "`run_dir` must be on a disk that all nodes share, and /node is each node's own",
        ),
        (["run_dir=/dev/shm/first"], "and /dev/shm is each node's own, but is '/dev/shm/first' instead."),
        (["cluster.time_limit_min=2"], "`cluster.time_limit_min` must be more than"),
        (
            ["cluster.time_limit_min=2", "cluster.signal_lead_s=600", "cluster.min_nodes=3"],
            "`cluster.time_limit_min` must be more than 10 minutes: ranks are told to stop 600 s before the limit "
            "(cluster.signal_lead_s), but is 2 instead. Set at least 20,",
        ),
        (["cluster.time_limit_min=2000"], "`cluster.time_limit_min` must be at most the 1440 minutes"),
        (["cluster.signal_lead_s=3"], "`cluster.signal_lead_s` must be at least the 48 s that a save takes"),
        (["cluster.gpu_gib=20"], "`cluster.gpu_gib` must be at least"),
        (["cluster=slurm_pyxis"], "`cluster.container.image` must be an image file or address"),
        (
            ["cluster=slurm_apptainer", "cluster.container.image=/shared/none.sif"],
            "`cluster.container.image` must be an image that is there, but is '/shared/none.sif' instead.",
        ),
        (
            ["cluster.container.image=x.sif"],
            "`cluster.container.runtime` must be apptainer or pyxis with an image",
        ),
        (
            ["cluster.container.mounts=[data]"],
            "`cluster.container.mounts` must be HOST or HOST:INSIDE from /",
        ),
        (["cluster.environment.RANK='3'"], "`cluster.environment.RANK` must be left to the launcher"),
        (["cluster.nccl.HF_HOME=x"], "`cluster.nccl.HF_HOME` must be a variable of NCCL"),
        (["cluster.max_stuck_attempts=0"], "`cluster.max_stuck_attempts` must be at least 1"),
        (["cluster.launcher=mpirun"], "`cluster.launcher`"),
        (
            ["evaluate.during.samples.file=/gone.txt"],
            "must be a file of prompts, but /gone.txt cannot be read",
        ),
        (
            ["evaluate.during.tasks=[a]", "evaluate.tasks.include_path=/gone"],
            "`evaluate.tasks.include_path` must be a folder",
        ),
        (
            ["checkpoint.best.metric=tasks/a/acc"],
            "`evaluate.during.tasks` must be tasks, of which checkpoint.",
        ),
        (
            ["cluster.time_limit=60"],
            "Unknown key `cluster.time_limit`. Did you mean `cluster.time_limit_min`?",
        ),
        (["cluster=slrum"], "Did you mean `slurm`?"),
    ],
)
def test_bad_input_is_found_before_submission(slurm, refuse, tmp_path, overrides, sentence):
    changed = {word.split("=")[0] for word in overrides}
    kept = [word for word in RUN if word.split("=")[0] not in changed]
    assert sentence in refuse("submit", *kept, *overrides)
    assert not slurm.exists()


SMALLER = ["cluster.num_nodes=4", "cluster.min_nodes=1", "train.global_batch_tokens=262144"]


def test_a_job_that_may_shrink_is_fitted_to_its_fewest_nodes_and_says_so(slurm, here, tmp_path, capsys):
    assert run_command([*local(tmp_path, *SMALLER), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "goes on by itself with those that are left, at least 1 (cluster.min_nodes)." in shown.err
    # One node writes four times as long, and is told to stop so much earlier.
    alone = int(shown.out.partition("--signal=B:USR1@")[2].splitlines()[0])
    assert run_command([*local(tmp_path, "cluster.num_nodes=4"), "--dry-run"]) == 0
    assert alone > int(capsys.readouterr().out.partition("--signal=B:USR1@")[2].splitlines()[0])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (
            ["cluster.gpu_gib=22", "zero=zero3"],
            "null, or at least 2, with fewer of which this run does not fit",
        ),
        (
            ["train.router_bias_rate=0.001"],
            "null where routers train, unless ranks x micro batch divide the 128 packs",
        ),
    ],
)
def test_nodes_on_which_the_ranks_would_end_are_refused_before(slurm, refuse, words, rule):
    shown = refuse("submit", *RUN, *SMALLER, *words)
    assert f"`cluster.min_nodes` must be {rule}" in shown, shown
    assert not slurm.exists()


def test_all_problems_are_shown_together(slurm, refuse):
    shown = refuse("submit", *RUN, "cluster.max_stuck_attempts=0", "optim.lr=0", "cluster.ranks_per_node=0")
    assert "3 problems" in shown or "4 problems" in shown


def test_a_machine_without_slurm_is_a_sentence(nowhere, refuse):
    assert "must run where SLURM's sbatch and sinfo are on the PATH" in refuse("submit", *RUN)


SILENT = """#!/bin/sh
echo 'sinfo: error: resolve_ctls_from_dns_srv: res_nsearch error: Host name lookup failure' >&2
echo 'sinfo: error: fetch_config: DNS SRV lookup failed' >&2
exit 1
"""


def test_a_dry_run_goes_on_where_sinfo_does_not_answer_and_says_so_in_a_line(slurm, here, tmp_path, capsys):
    (tmp_path / "bin" / "sinfo").write_text(SILENT)
    assert run_command([*local(tmp_path), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "#SBATCH --nodes=2\n" in shown.out
    (line,) = [line for line in shown.err.splitlines() if "The site was not asked" in line]
    assert line == (
        "The site was not asked: sinfo does not answer (resolve_ctls_from_dns_srv: res_nsearch error: Host name lookup "
        "failure). Partition, GPUs of a node and limits were not checked."
    )


def test_a_submission_is_refused_where_sinfo_does_not_answer(slurm, here, tmp_path, capsys):
    (tmp_path / "bin" / "sinfo").write_text(SILENT)
    assert run_command(local(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "SLURM must answer `sinfo` here, but it says instead: resolve_ctls" in said and "fetch" not in said
    assert not slurm.exists()


def test_a_dry_run_only_says_that_the_image_is_not_here(slurm, here, tmp_path, capsys):
    image = ["cluster=slurm_apptainer", "cluster.container.image=/shared/none.sif"]
    words = [word for word in local(tmp_path) if word != "cluster=slurm"]
    assert run_command([*words, *image, "--dry-run"]) == 0
    assert "The image /shared/none.sif was not found on this machine" in capsys.readouterr().err


def test_what_sbatch_says_is_shown(slurm, here, tmp_path, capsys):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: Invalid account' >&2; exit 1\n")
    assert run_command(local(tmp_path)) == 2
    assert "`sbatch` refused: Invalid account" in capsys.readouterr().err


def test_a_measured_save_sets_the_lead(slurm, here, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").write_text('{"event":"saved","step":5,"time":1.0,"seconds":100.0}\n')
    assert run_command([*local(tmp_path), "--dry-run"]) == 0
    assert "#SBATCH --signal=B:USR1@260\n" in capsys.readouterr().out


def test_a_sites_own_folder_is_found_through_the_search_path(nowhere, tmp_path, capsys):
    (tmp_path / "site" / "cluster").mkdir(parents=True)
    (tmp_path / "site" / "cluster" / "ours.yaml").write_text(
        "defaults: [slurm]\npartition: h100\naccount: physics\nmodules: [cuda/12.8]\n"
        "nccl: {NCCL_SOCKET_IFNAME: ib0}\nenvironment: {HF_HOME: /shared/hf}\n"
    )
    search = f"hydra.searchpath=[file://{tmp_path}/site]"
    words = [word for word in RUN if word != "cluster=slurm"]
    assert run_command(["submit", search, "cluster=ours", *words, "--dry-run"]) == 0
    script = capsys.readouterr().out
    for line in ("#SBATCH --partition=h100", "#SBATCH --account=physics", "for module in cuda/12.8; do"):
        assert f"{line}\n" in script
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in script and "export HF_HOME=/shared/hf\n" in script


def test_the_dtype_is_left_to_the_nodes_whatever_the_login_node_has(
    slurm, here, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PALIMPSEST_NO_BF16", "1")
    assert run_command(local(tmp_path)) == 0
    assert "zero.dtype=auto: the first rank takes bf16 where its GPU" in capsys.readouterr().out
    assert load_config(tmp_path / "run" / "config.yaml").zero.dtype == "auto"
    assert run_command(local(tmp_path, "zero.dtype=fp32", "--dry-run")) == 0
    assert "zero.dtype=auto" not in capsys.readouterr().err


PYXIS = ["cluster=slurm_pyxis", "cluster.container.image=/shared/images/first.sqsh"]


def contained(tmp_path, *overrides):
    """Return the words of a dry run in an image."""
    words = [word for word in local(tmp_path) if not word.startswith(("cluster=", "data.sources", "model"))]
    return [*words, *PYXIS, *overrides, "--dry-run"]


def mounts(script):
    """Return the folders that the ranks see."""
    (words,) = {line.strip() for line in script.split() if line.startswith("--container-mounts=")}
    return [pair.split(":")[0] for pair in words.partition("=")[2].split(",")]


def test_an_image_sees_the_folder_of_the_corpus_and_the_cache_of_the_hub(
    nowhere, tmp_path, capsys, monkeypatch
):
    """Nothing else than the script says what ranks see, so that a corpus that is left out is missing there."""
    monkeypatch.setenv("HF_HOME", "/shared/hub")
    corpus = "data.sources.corpus.path=/shared/data/corpus.jsonl"
    assert run_command(contained(tmp_path, corpus, "model=llama3_1_8b")) == 0
    shown = capsys.readouterr()
    assert {"/shared/data", "/shared/hub"} < set(mounts(shown.out))
    said = "because the configuration reads them: /shared/data (data.sources.corpus.path), /shared/hub (the cache of"
    assert said in shown.err
    assert (
        "There is nothing at /shared/data/corpus.jsonl on this machine (data.sources.corpus.path)"
        in shown.err
    )


def test_an_image_sees_what_links_lead_to_and_nothing_twice(nowhere, here, tmp_path, capsys):
    """A snapshot of the hub holds links to another folder; what is below a mounted folder needs no mount."""
    model, blobs, far = tmp_path / "model", tmp_path / "blobs", tmp_path / "far"
    for folder in (model, blobs, far):
        folder.mkdir()
    shape = ROOT / "benchmarks/shapes/llama3_8b/config.json"
    (blobs / "abc").write_text(shape.read_text())
    (model / "config.json").symlink_to(blobs / "abc")
    (far / "rows.jsonl").write_text("{}")
    (here / "rows.jsonl").symlink_to(far / "rows.jsonl")
    (far / "template.jinja").write_text("x")
    words = ["model=benchmark", f"model.path={model}", "data.sources.corpus.path=rows.jsonl"]
    words += [f"model.chat_template={far}/template.jinja", "data.sources.other={path: /listed/a/*.txt}"]
    words += ["cluster.container.mounts=[/listed,/lustre/x:/data]", "data.sources.inside={path: /data/b.txt}"]
    assert run_command(contained(tmp_path, *words)) == 0
    shown = capsys.readouterr()
    seen = mounts(shown.out)
    assert {str(model), str(blobs), str(far), str(here), "/listed"} < set(seen)
    assert len(seen) == len(set(seen)) and not {"/listed/a", "/data", "/lustre/x/b.txt"} & set(seen)
    assert "(data.sources.inside.path)" in shown.err, "it is looked for on this side of the mount"


def test_a_source_that_is_not_there_is_said_by_a_dry_run_and_refused_by_submit(slurm, here, tmp_path, capsys):
    gone = "data.sources.corpus.path=/gone/*.jsonl"
    assert run_command([*local(tmp_path, gone), "--dry-run"]) == 0
    said = "There is nothing at /gone/*.jsonl on this machine (data.sources.corpus.path): it may be on the cluster"
    assert said in capsys.readouterr().err
    assert run_command(local(tmp_path, gone)) == 2
    sentence = "must be on this machine when a run is submitted, but there is nothing at /gone/*.jsonl. Check"
    assert sentence in capsys.readouterr().err and not slurm.exists()


def test_what_only_one_node_would_see_is_refused(slurm, here, tmp_path, capsys):
    """All of this test is below tmp_path."""
    words = [*local(tmp_path), f"cluster.node_local_paths=[{tmp_path}]", "run_dir=/shared/run"]
    words.append(f"data.cache_dir={tmp_path}/cache")
    for more in (["--dry-run"], []):
        assert run_command([*words, *more]) == 2
        said = capsys.readouterr().err
        assert "`run_dir`" not in said
        for key in ("data.sources.corpus.path", "data.cache_dir"):
            assert f"`{key}` must be on a disk that all nodes share" in said
        assert (
            "The working directory must be on a disk that all nodes share, since the job begins in it" in said
        )


def test_a_cache_of_the_hub_that_each_node_has_for_itself_is_refused(nowhere, capsys, monkeypatch):
    """The first node fills it, and the others find nothing."""
    hub = [*DATA, *NODES, "cluster.node_local_paths=[/node]", "run_dir=/shared/run", "model=llama3_1_8b"]
    hub += ["data.sources.corpus.path=/shared/corpus.txt", "data.cache_dir=/shared/cache"]

    def said(*words):
        code = run_command(["submit", "--dry-run", *hub, *words])
        return "" if code == 0 else capsys.readouterr().err

    monkeypatch.setenv("HF_HOME", "/node/hf")
    assert (
        "`HF_HOME` must be on a disk that all nodes share, and /node is each node's own, but is '/node/hf' instead. "
        "Export a shared folder, or set cluster.environment.HF_HOME=FOLDER" in said()
    )
    assert not said("cluster.environment.HF_HOME=/shared/hf")
    assert not said("cluster.setup=['export HF_HOME=/shared/hf']")
    assert not said("cluster.num_nodes=1")
    monkeypatch.setenv("HF_HUB_CACHE", "/shared/hub")
    assert "`HF_HOME`" in said(), "data sets of the hub lie there"
    monkeypatch.setenv("HF_DATASETS_CACHE", "/node/sets")
    found = said()
    assert "`HF_DATASETS_CACHE`" in found and "`HF_HOME`" not in found
    assert not said("model=benchmark", *LLAMA[1:]), "nothing is of the hub"


def test_all_that_speaks_against_a_submission_is_told_at_once(slurm, here, tmp_path, capsys, monkeypatch):
    """Places, the site, the model and the memory came one after the other, each after the one before was mended."""
    model = tmp_path / "base"
    model.mkdir()
    (model / "config.json").write_text((ROOT / "benchmarks/shapes/llama3_8b/config.json").read_text())
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    words = [
        "model.kind=pretrained",
        f"model.path={model}",
        "data=text",
        "data.sources.corpus.path=../rows.jsonl",
    ]
    words += ["data.sources.more.path=../rowz.jsonl", "train.max_steps=10", *NODES, "cluster.gpu_gib=10"]
    words += [
        "run_dir=/proc/shared/run",
        "cluster.partition=b200",
        f"cluster.node_local_paths=[{here},/node]",
    ]
    words += ["data.cache_dir=/node/cache", "cluster.python=/node/venv/bin/python", "cluster.scratch=scratch"]
    assert run_command(["submit", *words]) == 2
    said = capsys.readouterr().err
    for sentence in (
        "`data.cache_dir` must be on a disk that all nodes share, and /node is each",
        "The working directory must be on a disk that all nodes share, since the job begins in it, but",
        "`cluster.python` must be on a disk that all nodes share, and /node is each node's own, but is '/node/venv",
        f"when a run is submitted, but there is nothing at {tmp_path}/here/../rowz.jsonl. Did you mean",
        "`run_dir` must be a folder you can write to",
        f"but {model} has no weights",
        "and has no tokenizer",
        "`data.sources.corpus.columns.text` must name a column of rows.jsonl (row 1)",
        "`cluster.partition` must be one of main, but is 'b200' instead.",
        "`cluster.gpu_gib` must be at least",
    ):
        assert sentence in said, (sentence, said)
    assert not slurm.exists()


def test_without_slurm_the_other_problems_are_told_too(nowhere, refuse):
    shown = refuse("submit", *RUN, "optim.lr=-1")
    assert (
        "must run where SLURM's sbatch and sinfo are" in shown and "`optim.lr` must be more than 0" in shown
    )


def test_an_environment_on_a_nodes_own_disk_is_refused(slurm, here, tmp_path, capsys, monkeypatch):
    """The ranks would begin with a Python that other nodes do not have."""
    venv = tmp_path / "venv"
    monkeypatch.setattr(sys, "executable", f"{venv}/bin/python")
    monkeypatch.setattr(sys, "prefix", str(venv))
    mine = [*local(tmp_path), f"cluster.node_local_paths=[{venv}]"]
    for more in (["--dry-run"], []):
        assert run_command([*mine, *more]) == 2
        said = capsys.readouterr().err
        assert (
            f"`cluster.python` must be on a disk that all nodes share, and {venv} is each node's own" in said
        )
        assert (
            "Install Palimpsest in an environment on a shared disk and submit with it, or set cluster.python"
            in said
        )
    assert run_command([*mine, "cluster.python=/shared/venv/bin/python"]) == 0


def test_a_dry_run_goes_without_a_model_that_is_on_the_cluster(slurm, here, tmp_path, capsys):
    words = [
        word for word in local(tmp_path, "model.kind=pretrained") if not word.startswith(("model.", "model="))
    ]
    assert run_command([*words, "model.path=/shared/llama", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert (
        "#SBATCH --nodes=2\n" in shown.out
        and "Memory is not forecast: the model is not on this machine" in shown.err
    )
    assert "There is nothing at /shared/llama on this machine (model.path)" in shown.err
    assert run_command([*words, "model.path=org/nowhere", "--dry-run"]) == 2
    assert "'org/nowhere' is neither: there is no such folder" in capsys.readouterr().err
