"""Settings all tests share: no network, no wandb, a home of their own, and GPU tests only where there is a GPU."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

# Before anything imports transformers or torch. Set by tests/run.sh as well; here for a bare pytest.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def move_out() -> None:
    """Give this session an empty home, all its workers the same: nobody else's files are found or left there."""
    if "PALIMPSEST_TESTS_HOME" in os.environ:
        return
    home = tempfile.mkdtemp(prefix="palimpsest-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    # git may need its own settings to read this repository.
    os.environ.setdefault("GIT_CONFIG_GLOBAL", str(Path("~/.gitconfig").expanduser()))
    os.environ["HOME"] = os.environ["PALIMPSEST_TESTS_HOME"] = home
    # Each of these would lead to a folder that others use too.
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        os.environ.pop(name, None)


def heed_signals() -> None:
    """Let children die of what this process was told to ignore, as under nohup: they inherit that.

    A handler does not outlive the start of another program.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


move_out()
heed_signals()
# A machine that is busy draws examples slowly, and one of them may take seconds.
hypothesis.settings.register_profile(
    "patient", max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is there for good: a sixth of a worker's time went to it."""
    gc.collect()
    gc.freeze()
