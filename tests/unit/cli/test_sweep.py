"""`-m` as a person meets it. SLURM's commands, and the Python that trains a point here, are shell scripts."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.helpers.calls import MANY_CALLS, calls_without_torch
from tests.helpers.ctrl_c import listen_to_ctrl_c
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.cli import run_command
from trainer.config.store import load_config

RUN = ["model=tiny", "data=text", "data.sources.corpus.path=../corpus.txt", "train.max_steps=10"]
NODES = ["cluster=slurm", "cluster.num_nodes=2", "train.global_batch_tokens=262144"]
# Trains nothing: logs ten times the learning rate as the objective; a seed of 7 fails.
PYTHON = """\
#!/bin/bash
config=${@: -1}
run_dir=$(dirname "$config")
value() { awk -v key="$1:" '$1 == key {print $2; exit}' "$config"; }
echo "$*" >>"$run_dir/../calls"
[[ $(value seed) == 7 ]] && { echo "Error: no data" >&2; exit 2; }
echo '{"event":"started","step":0,"time":1,"num_steps":10}' >"$run_dir/ledger.jsonl"
awk -v lr="$(value lr)" 'BEGIN {
    print "{\\"step\\":0,\\"eval_mean\\":0.5}"
    printf "{\\"step\\":5,\\"loss\\":2.5,\\"eval_mean\\":%.9f}\\n{\\"step\\":10,\\"eval_mean\\":%.9f}\\n", lr, 10 * lr
}' >"$run_dir/metrics.jsonl"
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Put a script in the place of the interpreter that trains a point; return it."""
    script = tmp_path / "python"
    script.write_text(PYTHON)
    script.chmod(0o755)
    (tmp_path / "corpus.txt").write_text("a text")
    monkeypatch.setattr(sys, "executable", str(script))
    return script


@pytest.fixture
def slurm(here, tmp_path, monkeypatch):
    """Put SLURM's commands on the PATH; return the file that notes submissions. Jobs are numbered from 101 on."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (tmp_path / "corpus.txt").write_text("a text")
    calls.touch()
    for name, body in (
        ("sinfo", f"echo asked >>{tmp_path}/asked; echo 'main*|up|4|gpu:h100:8|128|1-00:00:00'"),
        ("sbatch", f'echo "$*" >>{calls}; echo $((100 + $(wc -l <{calls})))'),
        ("squeue", f"cat {tmp_path}/queue 2>/dev/null || true"),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return calls


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


def train(folder, *words):
    return run_command(["train", "-m", *RUN, f"run_dir={folder}", *words])


def submit(folder, *words):
    shared = ["cluster.node_local_paths=[/nowhere]", "optim.lr=1e-5,2e-5"]
    return run_command(["submit", "-m", *RUN, *NODES, *shared, f"run_dir={folder}", *words])


def points(folder):
    return json.loads((folder / "sweep.json").read_text())["points"]


def num_calls(folder):
    return len((folder / "calls").read_text().splitlines())


def test_what_a_word_replaces_is_said_once_and_not_by_every_point(slurm, here, folder, capsys):
    assert submit(folder, "recipe=continued_pretrain", "train.max_steps=3,4", "--dry-run") == 0
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if "takes the place" in line and "max_steps=..." in line]
    assert lines == ["train.max_steps=... of the command line takes the place of train.max_epochs=1.0."]
    assert submit(folder, "recipe=continued_pretrain", "train.max_steps=3", "--dry-run") == 0
    assert capsys.readouterr().err.count("takes the place") == 1


def test_a_submission_hands_in_a_job_a_point_each_in_a_directory_that_tells_which(
    slurm, here, folder, capsys
):
    assert submit(folder, "zero.stage=2,3", "name=rates") == 0
    names = ["001_lr-1e-05_stage-2", "002_lr-1e-05_stage-3", "003_lr-2e-05_stage-2", "004_lr-2e-05_stage-3"]
    assert slurm.read_text() == "".join(f"--parsable {folder}/{name}/job.sh\n" for name in names)
    assert sorted(path.name for path in folder.iterdir()) == [".lease", ".lock", *names, "sweep.json"]
    assert [path.name for path in here.iterdir()] == []
    frozen = load_config(folder / names[2] / "config.yaml")
    assert (frozen.optim.lr, frozen.zero.stage, frozen.run_dir) == (2e-5, 2, str(folder / names[2]))
    assert (frozen.name, frozen.log.group) == (f"rates-{names[2]}", "rates")
    assert [point["job"] for point in points(folder)] == [101, 102, 103, 104]
    shown = capsys.readouterr().out
    assert "003_lr-2e-05_stage-2: job 103 (optim.lr=2e-05 zero.stage=2)" in shown
    assert f"See: palimpsest status {folder}" in shown


@pytest.mark.slow
def test_a_group_that_a_person_names_is_kept(slurm, folder):
    assert submit(folder, "log.group=mine") == 0
    assert load_config(folder / "001_lr-1e-05" / "config.yaml").log.group == "mine"


def test_a_dry_run_shows_every_point_and_one_script_and_changes_nothing(slurm, here, folder, capsys):
    assert submit(folder, "--dry-run") == 0
    shown = capsys.readouterr()
    assert shown.out.count("#!/bin/bash") == 1 and shown.out.endswith('exit "$code"\n')
    assert "002_lr-2e-05: optim.lr=2e-05" in shown.err and f"Points below {folder}: 2" in shown.err
    assert not folder.exists() and not slurm.read_text() and [*here.iterdir()] == []


def test_the_site_is_asked_once_for_all_points(slurm, folder, tmp_path):
    assert submit(folder) == 0
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_one_wrong_point_keeps_all_from_being_submitted_and_all_problems_are_told(slurm, refuse, folder):
    words = [*RUN, *NODES, "cluster.node_local_paths=[/nowhere]", f"run_dir={folder}"]
    shown = refuse("submit", "-m", *words, "optim.lr=1e-5,0", "train.max_epochs=null,2")
    assert "002_lr-1e-05_max-epochs-2: The configuration has 1 problem" in shown
    assert "004_lr-0_max-epochs-2: The configuration has 2 problems" in shown
    assert "001_" not in shown
    assert not slurm.read_text() and not folder.exists()


def test_started_again_it_submits_neither_what_is_in_the_queue_nor_what_has_finished(
    slurm, folder, tmp_path, capsys
):
    assert submit(folder, "zero.stage=2,3") == 0
    first, second, third, fourth = (folder / point["name"] for point in points(folder))
    (tmp_path / "queue").write_text("101 RUNNING\n102 PENDING\n103 FAILED\n104 COMPLETED\n")
    (fourth / "attempts.jsonl").open("a").write('{"event":"started"}\n{"event":"ended","code":0}\n')
    capsys.readouterr()
    assert submit(folder, "zero.stage=2,3") == 0
    assert slurm.read_text().splitlines()[4:] == [f"--parsable {third}/job.sh"]
    shown = capsys.readouterr().out
    assert f"{first.name}: job 101 is running since an earlier start." in shown
    assert f"{second.name}: job 102 is pending" in shown and f"{fourth.name} has finished before" in shown


@pytest.mark.slow
def test_more_values_add_points_and_keep_the_names_of_the_old_ones(slurm, folder):
    assert submit(folder) == 0
    assert submit(folder, "optim.lr=5e-6,2e-5") == 0
    names = [point["name"] for point in points(folder)]
    assert names == ["001_lr-1e-05", "002_lr-2e-05", "003_lr-5e-06"]


def test_what_sbatch_refuses_says_how_to_go_on(slurm, folder, tmp_path, capsys):
    sbatch = tmp_path / "bin" / "sbatch"
    limit = (
        f'[ $(wc -l <{slurm}) -ge 1 ] && {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}'
    )
    sbatch.write_text(sbatch.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{limit}\n"))
    assert submit(folder) == 2
    shown = capsys.readouterr().err
    assert "QOSMaxSubmitJobPerUserLimit" in shown and "Submitted before it: 1." in shown


def test_a_local_sweep_trains_every_point_and_tells_the_best(python, here, folder, capsys):
    """A point that fails is told with its error, and the others go on."""
    assert train(folder, "optim.lr=1e-3,1e-4", "seed=0,7") == 0
    shown = capsys.readouterr().out
    assert [point["objective"] for point in points(folder)] == [0.01, None, 0.001, None]
    assert points(folder)[1]["error"] == "Error: no data"
    assert "[2/4] 002_lr-0.001_seed-7 failed: Error: no data" in shown
    assert f"Best: {folder}/003_lr-0.0001_seed-0, eval_mean 0.001" in shown
    assert f"train --config {folder}/001_lr-0.001_seed-0/config.yaml" in (folder / "calls").read_text()
    page = (folder / "sweep.html").read_text()
    assert "Best: optim.lr = 0.0001, seed = 0, with eval_mean 0.001" in page
    assert page.count("<svg") == 3 and "Error: no data" in page
    assert [*here.iterdir()] == []
    assert not [path for path in folder.rglob("*") if path.name in (".hydra", "multirun.yaml", "multirun")]


@pytest.mark.parametrize(
    ("words", "values", "best"),
    [
        (["sweep.value=best"], [0.001, 0.0001], "002_lr-0.0001"),
        (["sweep.direction=maximize"], [0.01, 0.001], "001_lr-0.001"),
        (["sweep.objective=loss"], [2.5, 2.5], "001_lr-0.001"),
    ],
)
def test_any_logged_number_is_an_objective(python, here, folder, words, values, best):
    """Step 0 is the base model, whose value would be the best or the worst of all."""
    assert train(folder, "optim.lr=1e-3,1e-4", *words) == 0
    assert [point["objective"] for point in points(folder)] == pytest.approx(values)
    assert json.loads((folder / "sweep.json").read_text())["best"] == best


def test_a_sweep_that_is_started_again_trains_only_what_has_not_finished(python, here, folder, capsys):
    assert train(folder, "optim.lr=1e-3", "seed=0,7,1") == 0
    python.write_text(PYTHON.replace("== 7 ", "== 8 "))
    capsys.readouterr()
    assert train(folder, "optim.lr=1e-3", "seed=0,7,1") == 0
    assert num_calls(folder) == 4 and all(point["objective"] == 0.01 for point in points(folder))
    assert "001_seed-0 has finished before." in capsys.readouterr().out


def test_a_signal_stops_the_run_and_the_sweep_which_goes_on_later(python, here, folder):
    python.write_text(
        PYTHON + 'trap "exit 75" TERM INT; touch "$run_dir/ready"\n'
        "[[ -e $run_dir/../go ]] || while :; do sleep 0.05; done\n"
    )
    code = f"import sys\nsys.executable = {str(python)!r}\nfrom trainer.cli import main\nmain()"
    words = ["train", "-m", *RUN, f"run_dir={folder}", "seed=0,1"]
    interpreter = os.environ.get("PYTHON_OF_TESTS", os.path.join(sys.prefix, "bin", "python"))
    command = [interpreter, "-c", code, *words]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c
    )
    wait_until((folder / "001_seed-0" / "ready").exists, "the first point", running.communicate, running)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 75
    assert "Stopped by a signal. Points left: 2. Start the same command again to go on." in said
    assert [point["state"] for point in points(folder)] == ["stopped, nothing saved", "not begun"]
    (folder / "go").touch()
    assert subprocess.run(command, capture_output=True, timeout=LIMIT_S).returncode == 0
    assert [point["state"] for point in points(folder)] == ["finished", "finished"]


def test_a_directory_has_one_sweep_at_a_time(python, here, folder, refuse):
    from trainer.runtime.lock import run_lock

    with run_lock(folder):
        assert "must be used by one run at a time" in refuse(
            "train", "-m", *RUN, f"run_dir={folder}", "seed=0,1"
        )


def test_a_sweep_without_any_objective_is_a_sentence(python, here, folder, capsys):
    assert train(folder, "seed=7", "optim.lr=1e-3,1e-4") == 2
    shown = capsys.readouterr().err
    assert "has an objective. 001_lr-0.001: Error: no data." in shown and "Traceback" not in shown


@pytest.mark.slow
def test_optuna_learns_from_the_points_of_an_earlier_start(python, here, folder, capsys):
    pytest.importorskip("optuna")
    words = ["hydra/sweeper=optuna", "optim.lr=tag(log,interval(1e-5,1e-2))", "zero=choice(zero1,zero2)"]
    assert train(folder, *words, "sweep.trials=3") == 0
    first = points(folder)
    assert len(first) == 3 and len({point["params"]["optim.lr"] for point in first}) == 3
    assert all(
        point["objective"] == pytest.approx(10 * float(point["params"]["optim.lr"])) for point in first
    )
    capsys.readouterr()
    assert train(folder, *words, "sweep.trials=5") == 0
    assert points(folder)[:3] == first and len(points(folder)) == 5 and num_calls(folder) == 5
    assert len({point["params"]["optim.lr"] for point in points(folder)}) == 5
    assert "[5/5]" in capsys.readouterr().out


def test_optuna_gives_up_when_nothing_works(python, here, folder, capsys):
    pytest.importorskip("optuna")
    words = ["hydra/sweeper=optuna", "optim.lr=interval(1e-5,1e-2)", "seed=7", "sweep.trials=20"]
    assert train(folder, *words) == 2
    assert num_calls(folder) == 3 and "has an objective" in capsys.readouterr().err


def test_without_optuna_a_sentence_names_the_package(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("launch.search", "trainer.launch.search"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    shown = refuse("train", "-m", *RUN, "hydra/sweeper=optuna", "optim.lr=interval(1e-5,1e-2)")
    assert shown.startswith("`hydra/sweeper` must be basic without the package optuna")
    assert "pip install 'palimpsest-trainer[sweep]'" in shown


def test_what_to_sweep_over_may_stand_in_a_file(python, tmp_path, here, folder):
    """Hydra's own place for it, hydra.sweeper.params; a key of the command line wins."""
    (tmp_path / "site" / "experiment").mkdir(parents=True)
    (tmp_path / "site" / "experiment" / "rates.yaml").write_text(
        "# @package _global_\nname: rates\nhydra: {sweeper: {params: {optim.lr: '1e-3,1e-4', seed: 'range(0,2)'}}}\n"
    )
    words = [f"hydra.searchpath=[file://{tmp_path}/site]", "experiment=rates", "seed=5,6"]
    assert train(folder, *words) == 0
    params = [point["params"] for point in points(folder)]
    assert [(float(p["optim.lr"]), p["seed"]) for p in params] == [
        (1e-3, "5"),
        (1e-3, "6"),
        (1e-4, "5"),
        (1e-4, "6"),
    ]


@pytest.mark.slow
def test_a_source_and_a_key_that_is_also_fixed_may_be_swept(python, here, folder):
    for name in ("a.txt", "b.txt"):
        (here / name).write_text("Some words.\n")
    words = ["data.sources.corpus.path=a.txt,b.txt", "seed=3", "zero.extra.steps_per_print=7"]
    assert train(folder, *words, "seed=4,5") == 0
    assert [tuple(point["params"].values()) for point in points(folder)] == [
        ("a.txt", "4"),
        ("a.txt", "5"),
        ("b.txt", "4"),
        ("b.txt", "5"),
    ]
    frozen = load_config(folder / points(folder)[2]["name"] / "config.yaml")
    assert (frozen.data.sources["corpus"].path, frozen.seed) == (str(here / "b.txt"), 4)
    assert frozen.zero.extra == {"steps_per_print": 7}


def test_a_sweeper_of_somebody_else_gets_the_objectives_from_the_launcher(python, here, folder, monkeypatch):
    """Hydra's own basic sweeper stands for any that is installed: it reads every JobReturn."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    seen = []
    launched = BasicSweeper.get_job_batch
    monkeypatch.setattr(BasicSweeper, "get_job_batch", lambda self: seen.append(self) or launched(self))
    target = "hydra.sweeper._target_=hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    assert train(folder, target, "optim.lr=1e-3,1e-4") == 0
    (sweeper,) = seen
    again = sweeper.launcher.launch([["optim.lr=0.001"], ["optim.lr=0.0001"]], 0)
    assert [one.return_value for one in again] == [0.01, 0.001]
    assert [one.working_dir for one in again] == [str(folder / point["name"]) for point in points(folder)]
    assert num_calls(folder) == 2


def test_a_sweep_of_no_torch(python, here, folder):
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'deepspeed', 'peft', 'datasets', 'wandb'):\n"
        "    sys.modules[name] = None\n"
        f"sys.executable = {str(python)!r}\n"
        "from trainer.cli import run_command\n"
        "assert run_command(sys.argv[1:]) == 0\n"
    )
    command = [os.path.join(sys.prefix, "bin", "python"), "-c", code]
    words = ["train", "-m", *RUN, f"run_dir={folder}", "seed=0,1"]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_three_points_are_handed_in_without_torch_and_each_is_little_work(slurm, here, folder):
    words = [*RUN, *NODES, "cluster.node_local_paths=[/nowhere]", f"run_dir={folder}", "seed=range(0,3)"]
    assert calls_without_torch(["submit", "-m", *words], here) < 3 * MANY_CALLS
    assert len(slurm.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "`-m` must be given a key with several values, but every key has one instead."),
        (["optim.lr=interval(1e-5,1e-4)"], "`optim.lr` must be a list, range() or choice() for a grid"),
        (
            ["hydra/sweeper=optuna", "optim.lr=tag(log,interval(0,1))"],
            "`optim.lr` must be an interval with its lower end first, above 0 for tag(log, ...)",
        ),
        (["optim.lr=1e-3,fast"], "002_lr-fast: `optim.lr` must be a number, but is 'fast' instead."),
        (["optim.lrr=1,2"], "All points: Unknown key `optim.lrr`. Did you mean `optim.lr`?"),
        (["model=tiny,tinny"], "002_model-tinny: `model=tinny` is not an option of the group `model`."),
        (["sweep.objective=eval_men", "seed=0,1"], "Set sweep.objective=eval_mean."),
        (
            ["sweep.objective=eval/corpus", "seed=0,1", "data.validation_frac=0"],
            "`data.validation_frac` must be",
        ),
        (["sweep.trials=0", "seed=0,1"], "`sweep.trials` must be at least 1, but is 0 instead."),
        (["run_dir=a,b"], "`run_dir` must be one value for all points, but is 'a,b' instead."),
        (["sweep.objective=loss,eval_mean"], "`sweep.objective` must be one value for all points"),
        (["hydra.sweep.dir=x", "seed=0,1"], "`hydra.sweep.dir` must be left out, but is given."),
        (
            ["hydra/launcher=basic", "seed=0,1"],
            "`hydra/launcher` must be slurm or local, but is 'basic' instead.",
        ),
        (["hydra/sweeper=ax", "seed=0,1"], "`hydra/sweeper=ax` is not an option of Hydra's group"),
        (["hydra.launcher.wiat=1", "seed=0,1"], "Unknown key `hydra.launcher.wiat`."),
        (["hydra.sweeper.max_batch_size=0", "seed=0,1"], "`hydra.sweeper.max_batch_size` must be at least 1"),
        (["seed=range(1,"], "`seed` must be given as KEY=VALUE"),
        (["cluster.num_nodes=2", "seed=0,1"], "`cluster.num_nodes` must be 1 for `palimpsest train -m`"),
        (["--config", "x.yaml"], "`-m` must be given words to compose, but --config names a frozen"),
        (["--cfg", "seed=0,1"], "`--cfg` must be given for one run, but -m makes several."),
    ],
)
def test_bad_input_is_found_before_anything_is_started(refuse, words, sentence):
    assert sentence in refuse("train", "-m", *RUN, *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plan", "-m", "seed=0,1"], "`-m` must be given to train or submit, but is given to plan instead."),
        (
            ["train", "optim.lr=1e-5,2e-5"],
            "`optim.lr` must be one value, but is '1e-5,2e-5' instead. Sweep over",
        ),
        (["submit", "-m", "hydra/launcher=local", "seed=0,1"], "`hydra/launcher` must be slurm for"),
    ],
)
def test_a_sweep_where_there_is_none(refuse, words, sentence):
    assert sentence in refuse(words[0], *words[1:], *RUN)


def test_a_rank_does_not_sweep(refuse, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert "`-m` must be started alone, but this is a rank" in refuse("train", "-m", *RUN, "seed=0,1")


def test_a_directory_is_a_run_or_a_sweep_and_a_sweep_keeps_its_keys(python, here, folder, refuse, capsys):
    assert train(folder, "seed=0,1") == 0
    assert "holds one over seed instead" in refuse("train", "-m", *RUN, f"run_dir={folder}", "optim.lr=1,2")
    another = refuse("train", "-m", *RUN, f"run_dir={folder}", "seed=0,1", "data.seq_len=64")
    assert another.count("holds a run of another configuration (data.seq_len: ") == 2
    assert another.count(f"such as run_dir={folder}-2, or") == 2, "that of the sweep"
    point = folder / "001_seed-0"
    assert "must be a folder of its own for a sweep" in refuse(
        "train", "-m", *RUN, f"run_dir={point}", "seed=0,1"
    )
    (folder / "sweep.json").write_text("{}")
    assert "must be what a sweep wrote" in refuse("train", "-m", *RUN, f"run_dir={folder}", "seed=0,1")


def test_what_is_not_here_is_told_before_the_first_point_trains(here, python, tmp_path, capsys):
    """Every point would end for it, one after the other."""
    words = ["optim.lr=1e-3,1e-4", "data.sources.corpus.path=../gone.txt", "model.chat_template=gone.jinja"]
    assert train(tmp_path / "sweep", *words) == 2
    said = capsys.readouterr().err
    assert "No point was started" in said and "`model.chat_template` must name a readable Jinja file" in said
    assert (
        "`data.sources.corpus.path` must name a file" in said and not (tmp_path / "sweep" / "calls").exists()
    )


def test_a_sweep_is_not_written_into_a_folder_of_something_else(folder, refuse):
    folder.mkdir(exist_ok=True)
    (folder / "notes.md").write_text("words")
    said = refuse("train", "-m", *RUN, f"run_dir={folder}", "seed=0,1")
    assert f"`run_dir` must be a new folder or that of a run, but {folder} holds notes.md" in said
    assert [path.name for path in folder.iterdir()] == ["notes.md"]
