"""What the functions that ranks run have in common: configurations, sessions and steps."""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.helpers.tiny import make_workspace
from trainer.config.schema import RunConfig
from trainer.config.store import load_config


def make_inputs(mesh: Any, folder: str, **changes: Any) -> None:
    """Make the workspace, its models with changes; one rank."""
    make_workspace(Path(folder), **changes)


def config_of(workspace: str, run_dir: str | Path, *overrides: str) -> RunConfig:
    """Return the workspace's configuration with a run directory and overrides."""
    return load_config(Path(workspace) / "config.yaml", [f"run_dir={run_dir}", *overrides])


def references(data: str) -> list[Path]:
    """Return what is kept in the cache of a folder of what frozen models said."""
    return sorted((Path(data) / "cache" / "references").glob("*"))


def bytes_of(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def old_replay(data: str) -> list[str]:
    """Return the words with which a run replays old.jsonl of a folder, 40 % of what it learns."""
    key = "data.sources.old"
    return [
        *(f"{key}.path={data}/old.jsonl", f"{key}.role=replay", f"{key}.format=ids"),
        f"{key}.columns.loss_mask=loss_mask",
        f"data.cache_dir={data}/cache",
        "replay.ratio=0.4",
    ]


def train_frozen(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> None:
    """Train to the end, with the configuration in the run directory as a command leaves it there."""
    from trainer.config.snapshot import config_path, freeze
    from trainer.run import training

    if mesh.is_first:
        freeze(config_of(workspace, run_dir, *words), Path(run_dir))
    mesh.barrier()
    config = load_config(config_path(Path(run_dir)), [])
    assert training.run_training(config).value == "finished"


def plain_adamw(model: Any) -> Any:
    """Return torch's AdamW with the decay groups of a run, made without any code of ours."""
    import torch

    named = dict(model.named_parameters())
    plain = [p for n, p in named.items() if "norm" in n or "embed_tokens" in n]
    matrices = [p for n, p in named.items() if not ("norm" in n or "embed_tokens" in n)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)


@contextlib.contextmanager
def session_of(config: RunConfig) -> Iterator[Any]:
    """Open a session as a run does: the same data, model, loss head, optimizer and engine."""
    from trainer.run.session import open_session

    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        yield open_session(config, stack)
    gc.collect()


def loader_of(session: Any, data: Any = None) -> Any:
    """Return the training loader of a session, of another place on the data axis if asked."""
    from trainer.mix.loader import TrainLoader

    return TrainLoader(
        list(session.stores),
        [store.train for store in session.stores.values()],
        session.mixing().plan,
        session.mesh.data if data is None else data,
        session.config.train.micro_batch_size,
        session.pad_id,
    )


def held_out_losses(*arguments: Any, **options: Any) -> dict[str, float]:
    """Return the mean held-out loss of every source. Collective: every rank."""
    from trainer.evaluate.held_out import held_out_pieces

    return {name: found.mean for name, found in held_out_pieces(*arguments, **options).items()}


def take_steps(session: Any, num_steps: int, total: int = 8) -> list[dict[str, float]]:
    """Train optimizer steps and return loss and gradient norm of each."""
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.optim.schedule import lr_factor
    from trainer.run.step import train_step

    config = session.config
    loader = loader_of(session)
    objective = CausalLMObjective(loader.names)
    records = []
    for step in range(num_steps):
        session.policy.engine.set_lr(config.optim.lr * lr_factor(step, total, config.schedule))
        result = train_step(session.policy, objective, loader.read(step), stop=lambda: False)
        assert result.is_sound
        records.append({"loss": result.loss, "grad_norm": result.grad_norm})
    loader.close()
    return records
