"""Each tracker's real package, without a network: a killed and resumed run is one run, with one value a step."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.small_disk import fill, mounted
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.config.check_log import log_problems, tracked_name
from trainer.config.log import LogConfig, MlflowConfig, TrackerKind, TrackioConfig, WandbConfig, WandbMode
from trainer.metrics import wandb_file
from trainer.metrics.delivery import Delivery
from trainer.metrics.tensorboard import TensorboardTracker
from trainer.metrics.tracker import Bookmark, Conclusion, Told
from trainer.metrics.trackers import begin, run_card
from trainer.metrics.wandb_file import newest_step

END = Conclusion(
    4,
    {"forgetting/web": -0.25, "kl/fixed_conversations": 0.5},
    ("set", "change"),
    (("web", "-0.25"),),
    {"verdict": "web fell.", "gate": "passed", "report": "/runs/a/report.html"},
)


def open_logs(log: LogConfig, run_dir: Path, resumed_step: int, known: list[dict]) -> list[Delivery]:
    deliveries = begin(log, run_card(log, run_dir, "run", {"optim": {"lr": 1e-5}}), resumed_step, known)
    assert len(deliveries) == len(log.trackers)
    return deliveries


def open_log(log: LogConfig, run_dir: Path, resumed_step: int, known: list[dict]) -> Delivery:
    (delivery,) = open_logs(log, run_dir, resumed_step, known)
    return delivery


def killed_and_resumed(log: LogConfig, run_dir: Path) -> None:
    """Log steps 1 to 3, as a process does that is then killed; go on from step 1, to the end at step 4."""
    first = open_logs(log, run_dir, -1, [])
    for step in (1, 2, 3):
        for delivery in first:
            delivery.write(step, {"loss": float(step), "eval/web": 5.0})
    for delivery in first:
        delivery.close("preempted")
    # TensorBoard reads files by their names, which have the second, and counts within it: 10 comes before 9.
    second_of_first = int(time.time())
    wait_until(lambda: int(time.time()) > second_of_first, "another second")
    second = open_logs(log, run_dir, 1, [{"step": 1, "time": 0.0, "loss": 1.0, "eval/web": 5.0}])
    for step in (2, 3, 4):
        for delivery in second:
            delivery.write(step, {"loss": 10.0 * step, "eval/web": 5.0})
    for delivery in second:
        delivery.conclude(END)
        delivery.close("finished")


def test_tensorboard_shows_what_stands_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed(LogConfig(trackers=[TrackerKind.tensorboard]), tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in found.Scalars("loss")]
    assert points == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    assert [event.step for event in found.Scalars("eval/web")] == [1, 2, 3, 4]
    assert found.Scalars("forgetting/web")[0].value == -0.25
    text = found.Tensors("forgetting/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "gate: passed" in text and "/runs/a/report.html" in text and "| web | -0.25 |" in text


def gone_back(log: LogConfig, run_dir: Path) -> None:
    """Log steps 1 to 3, go back before a spike to step 1, and go on from there to the end at step 4."""
    delivery = open_log(log, run_dir, -1, [])
    for step in (1, 2, 3):
        delivery.write(step, {"loss": float(step)})
    for step in (2, 3, 4):
        delivery.write(step, {"loss": 10.0 * step})
    delivery.close("finished")


def test_tensorboard_shows_what_stands_after_a_rewind(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    gone_back(LogConfig(trackers=[TrackerKind.tensorboard]), tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in found.Scalars("loss")]
    assert points == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]


def test_tensorboard_goes_on_when_its_disk_has_room_again(tmp_path, capfd):
    """Its thread is gone then, and printed a traceback; the torn file ends a reader's way, so another one is begun."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard"
    with mounted(folder, "size=64k"):
        tracker = TensorboardTracker(folder, None)
        tracker.write(1, {"loss": 1.0})
        tracker.write(2, {"loss": 2.0})
        filler = fill(folder, 0)
        many = {f"eval/{n}": float(n) for n in range(200)}
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                tracker.write(2, many)
        filler.unlink()
        tracker.write(2, many)
        tracker.write(3, {"loss": 3.0})
        tracker.close("finished")
        found = EventAccumulator(str(folder)).Reload()
        points = [(event.step, event.value) for event in found.Scalars("loss")]
        assert points == [(1, 1.0), (2, 2.0), (3, 3.0)]
        assert [event.step for event in found.Scalars("eval/199")] == [2]
    assert "Traceback" not in capfd.readouterr().err


def test_mlflow_has_no_step_twice_after_a_rewind(tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    gone_back(LogConfig(trackers=[TrackerKind.mlflow]), tmp_path)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    points = client.get_metric_history(Bookmark.read(tmp_path, "mlflow").run_id, "loss")
    assert [(one.step, one.value) for one in points] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_tensorboard_is_told_what_its_folder_has_lost(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = LogConfig(trackers=[TrackerKind.tensorboard])
    records = [{"step": step, "time": 0.0, "loss": float(step)} for step in (1, 2)]
    open_log(log, tmp_path, 2, records).close(None)
    for file in (tmp_path / "tensorboard").iterdir():
        file.unlink()
    open_log(log, tmp_path, 2, records).close(None)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2]


def test_wandb_gets_every_step_once_over_its_offline_folders(tmp_path):
    pytest.importorskip("wandb")
    log = LogConfig(trackers=[TrackerKind.wandb], wandb=WandbConfig(WandbMode.offline))
    killed_and_resumed(log, tmp_path)
    run_id = Bookmark.read(tmp_path, "wandb").run_id

    def has_all() -> bool:
        # The second run of a second has `-1` behind the name of its folder.
        files = sorted(tmp_path.glob(f"wandb/offline-run-*-{run_id}*/run-{run_id}.wandb"))
        content = b"".join(path.read_bytes() for path in files)
        return (
            b"forgetting/web" in content and b"report.html" in content and newest_step(tmp_path, run_id) >= 4
        )

    wait_until(has_all, "the end of the run in wandb's files")  # its own process writes on for a moment


def losses_of_wandb(run_dir: Path, run_id: str) -> list[tuple[int, float]]:
    """Return step and loss of every record in wandb's files, in the order of its folders."""
    wandb_proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    points = []
    # The second run of a second has `-1` behind the name of its folder.
    for path in sorted(run_dir.glob(f"wandb/offline-run-*-{run_id}*/run-{run_id}.wandb")):
        for raw in wandb_file._records(path.read_bytes()):
            items = wandb_proto.Record.FromString(raw).history.item
            found = {item.key or "/".join(item.nested_key): item.value_json for item in items}
            points += [(int(found["_step"]), float(found["loss"]))] if "loss" in found else []
    return points


def test_wandb_has_no_step_of_two_after_a_rewind(tmp_path):
    """It drops what is smaller than its last step, and overwrites that one."""
    pytest.importorskip("wandb")
    gone_back(LogConfig(trackers=[TrackerKind.wandb], wandb=WandbConfig(WandbMode.offline)), tmp_path)
    run_id = Bookmark.read(tmp_path, "wandb").run_id
    wait_until(lambda: newest_step(tmp_path, run_id) == 4, "all steps in wandb's file")
    assert losses_of_wandb(tmp_path, run_id) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_two_trackers_at_once_have_each_step_once_after_a_resume(tmp_path):
    """Each as it can: one takes back what came after the step that is gone on from, the other only adds."""
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = [TrackerKind.tensorboard, TrackerKind.wandb]
    killed_and_resumed(LogConfig(trackers=kinds, wandb=WandbConfig(WandbMode.offline)), tmp_path)
    run_id = Bookmark.read(tmp_path, "wandb").run_id
    wait_until(lambda: newest_step(tmp_path, run_id) >= 4, "all steps in wandb's files")
    assert losses_of_wandb(tmp_path, run_id) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in found.Scalars("loss")]
    assert points == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]


def test_wandb_is_told_again_what_a_killed_process_had_not_written(tmp_path):
    pytest.importorskip("wandb")
    log = LogConfig(trackers=[TrackerKind.wandb], wandb=WandbConfig(WandbMode.offline))
    records = [{"step": step, "time": 0.0, "loss": float(step)} for step in range(1, 5)]
    open_log(log, tmp_path, 4, records[:2]).close("preempted")
    bookmark = Bookmark.read(tmp_path, "wandb")
    bookmark.advance(Told(4, 1))  # as it is when steps 3 and 4 were told and not written
    # wandb's own process writes on for a moment after a run is over.
    wait_until(lambda: newest_step(tmp_path, bookmark.run_id) == 2, "the first steps in wandb's file")
    again = open_log(log, tmp_path, 4, records)
    again.close("finished")
    assert again.num_known == 2
    wait_until(lambda: newest_step(tmp_path, bookmark.run_id) == 4, "all steps in wandb's files")


def test_mlflow_goes_on_in_its_run(tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    log = LogConfig(trackers=[TrackerKind.mlflow], tags=["a"], group="sweep")
    killed_and_resumed(log, tmp_path)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("palimpsest")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == Bookmark.read(tmp_path, "mlflow").run_id
    points = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")]
    assert points == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert run.info.status == "FINISHED" and run.data.params["optim.lr"] == "1e-05"
    assert run.data.metrics["forgetting/web"] == -0.25
    assert run.data.tags["gate"] == "passed" and run.data.tags["group"] == "sweep"
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["forgetting.md"]


TRACKIO = """
import sys
from pathlib import Path
from tests.unit.metrics.test_trackers import killed_and_resumed
from trainer.config.log import LogConfig, TrackerKind, TrackioConfig
log = LogConfig(trackers=[TrackerKind.trackio], trackio=TrackioConfig(dir=sys.argv[1]))
killed_and_resumed(log, Path(sys.argv[2]))
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("palimpsest")
logs = SQLiteStorage.get_logs("palimpsest", name)
print([(row["step"], row["loss"]) for row in logs if "loss" in row], "forgetting/web" in logs[-1])
"""


def test_trackio_goes_on_in_its_run(tmp_path):
    """In a process of its own: trackio takes its folder when it is imported."""
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(tmp_path / "trackio"), str(tmp_path / "run")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)] True"


def test_a_missing_package_is_a_sentence_with_the_fix(tmp_path):
    code = """
import sys
from pathlib import Path
# An isolated interpreter without site-packages has none of them.
sys.path.insert(0, sys.argv[1])
from trainer.config.log import LogConfig, MlflowConfig, TrackerKind
from trainer.metrics.trackers import tracker_problems
for kind in TrackerKind:
    log = LogConfig(trackers=[kind], mlflow=MlflowConfig(uri="http://host"))
    (found,) = tracker_problems(log, Path(sys.argv[2]), {})
    assert f"but {kind.value} is not" in found.sentence and "pip install" in found.sentence, found
both = LogConfig(trackers=[TrackerKind.wandb, TrackerKind.trackio])
(found,) = tracker_problems(both, Path(sys.argv[2]), {})
said = "but wandb and trackio are not: there is no package wandb and no package trackio"
assert said in found.sentence, found
"""
    root = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-I", "-S", "-c", code, root, str(tmp_path)], check=True, timeout=LIMIT_S)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mlruns", "Folders are given up by MLflow"),
        ("file:///data/mlruns", "Folders are given up by MLflow"),
        ("sqlite:///mlflow.db", "Write sqlite:////data/mlflow.db"),
        ("https://me:secret@host", "must hold no password"),
        ("http://", "an address with a host"),
        ("http://[", "It cannot be read"),
    ],
)
def test_an_address_that_mlflow_would_refuse_is_a_sentence(uri, said):
    log = LogConfig(trackers=[TrackerKind.mlflow], mlflow=MlflowConfig(uri=uri))
    (found,) = log_problems(log, [])
    assert found.key == "log.mlflow.uri" and said in found.sentence and "secret" not in found.sentence


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "databricks", "sqlite:////data/m.db", "postgresql+psycopg2://host/db"]
)
def test_addresses_of_servers_and_databases_pass(uri):
    assert not [*log_problems(LogConfig(trackers=[TrackerKind.mlflow], mlflow=MlflowConfig(uri=uri)), [])]


def test_rules_about_trackers_hold_only_where_there_are_some():
    log = LogConfig(project="a/b", trackio=TrackioConfig(space="board"))
    assert not [*log_problems(log, ["a b", "a_b"])]
    log.trackers = [TrackerKind.trackio, TrackerKind.trackio]
    keys = [found.key for found in log_problems(log, ["a b", "a_b"])]
    assert keys == ["log.trackers", "log.project", "log.trackio.space", "data.sources.a_b"]


def test_every_tracker_takes_the_names():
    assert tracked_name("eval/web-2.0_x") == "eval/web-2.0_x"
    assert tracked_name("loss/größte Texte (neu)") == "loss/gr__te_Texte__neu_"
