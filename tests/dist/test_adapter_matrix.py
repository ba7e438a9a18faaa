"""Every method, recipe, ZeRO stage and number of ranks that docs/models.md calls tested is trained here.

Five cells on the diagonal, and all of them: with `-m slow`. The default suite has those of test_support_matrix.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.test_support_matrix import write_sources
from tests.house.test_tables import METHODS, method_cells

CELLS = [cell for cell in method_cells() if cell[3] == "tested"]
DIAGONAL = [
    ("lora", "continued_pretrain", 0),
    ("dora", "full_finetune", 3),
    ("ia3", "continued_pretrain", 2),
    ("prefix", "full_finetune", 1),
    ("freeze", "continued_pretrain", 3),
]
NUM_STEPS = 4
RATES = {"ia3": 1e-1, "prefix": 3e-2, "prompt": 3e-2}


def overrides_of(folder: Path, method: str, recipe: str, stage: int, num_ranks: int) -> list[str]:
    data = {
        "continued_pretrain": [
            "data=text",
            f"data.sources.corpus.path={folder / 'text.jsonl'}",
            "replay=general",
            "data.sources.general.dataset=null",
            "data.sources.general.subset=null",
            f"data.sources.general.path={folder / 'general.jsonl'}",
            "replay.ratio=0.3",
        ],
        "full_finetune": ["data=chat", f"data.sources.chat.path={folder / 'chat.jsonl'}"],
    }
    return [
        f"recipe={recipe}",
        f"tune={method}",
        f"zero=zero{stage}",
        "model=tiny",
        *data[recipe],
        "data.seq_len=128",
        "data.validation_frac=0.1",
        f"data.cache_dir={folder / 'cache'}",
        "train.global_batch_tokens=1024",
        f"train.micro_batch_size={8 // num_ranks if stage == 0 else 2}",
        "train.max_epochs=null",
        f"train.max_steps={NUM_STEPS}",
        "evaluate.every_steps=0",
        "evaluate.forgetting=false",
        "data.max_validation_packs=2",
        f"optim.lr={RATES.get(method, 3e-3)}",
        f"checkpoint.every_steps={NUM_STEPS}",
        f"run_dir={folder / f'{method}-{recipe}-{stage}-{num_ranks}'}",
    ]


def train_all(mesh: Any, folder: str, cells: list[list[Any]]) -> None:
    from trainer.command.fitting import fitted_here
    from trainer.config.check import check_config
    from trainer.config.store import compose_config
    from trainer.run import training

    for method, recipe, stage in cells:
        config = compose_config(overrides_of(Path(folder), method, recipe, stage, mesh.num_ranks))
        config = fitted_here(config, mesh.num_ranks, says=False)
        check_config(config, mesh.num_ranks)
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
        assert training.run_training(config).value == "finished"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainer.command.prepare import prepare_data
    from trainer.config.store import compose_config

    made = tmp_path_factory.mktemp("matrix")
    write_sources(made)
    rows = [{"text": f"General text {i}: " + "once upon a time " * (2 + i % 5)} for i in range(120)]
    (made / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for recipe in ("continued_pretrain", "full_finetune"):
        prepare_data(compose_config(overrides_of(made, "lora", recipe, 1, 1)))
    return made


def check_run(run_dir: Path, recipe: str, method: str) -> None:
    """A loss that rises: gradients do not reach what trains. No checkpoint: the frozen base moved."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == NUM_STEPS and losses[-1] < losses[0], (run_dir.name, losses)
    if recipe == "continued_pretrain":
        assert any("loss/general" in record for record in records), run_dir.name
    assert (run_dir / "checkpoints" / f"step-{NUM_STEPS:08d}" / "manifest.json").is_file(), run_dir.name
    assert (run_dir / "adapter_config.json").is_file() == (method != "freeze")


@pytest.mark.slow
def test_a_diagonal_of_methods_stages_and_recipes_trains(pool: Any, folder: Path) -> None:
    assert {(*cell, "tested") for cell in DIAGONAL} <= set(CELLS)
    pool(2).run(train_all, folder=str(folder), cells=[list(cell) for cell in DIAGONAL])
    for method, recipe, stage in DIAGONAL:
        check_run(folder / f"{method}-{recipe}-{stage}-2", recipe, method)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("method", list(dict.fromkeys(row["tune"] for row in METHODS)))
def test_every_cell_that_the_matrix_calls_tested_trains(
    pool: Any, folder: Path, method: str, num_ranks: int
) -> None:
    """A failure in one cell only points at that method in that stage; the run's folder names it."""
    cells = [cell[:3] for cell in CELLS if cell[0] == method]
    pool(num_ranks).run(train_all, folder=str(folder), cells=[list(cell) for cell in cells])
    for _, recipe, stage in cells:
        check_run(folder / f"{method}-{recipe}-{stage}-{num_ranks}", recipe, method)
