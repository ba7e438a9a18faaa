"""`palimpsest evaluate FOLDER evaluate.scores.file=FILE`: rows scored by an exported reward model, on one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.check import refuse
from trainer.config.check_scores import score_problems
from trainer.config.many import many
from trainer.config.model import ModelConfig
from trainer.config.reward import RewardConfig
from trainer.config.schema import RunConfig
from trainer.config.scores import ScoresConfig
from trainer.config.snapshot import config_path, write_atomic
from trainer.errors import ConfigError, Exit
from trainer.sample.scored_rows import RowToScore, best_of, read_objects, read_rows, with_scores


def score_file(config: RunConfig) -> int:
    """Score the rows of a file, write them with their scores, and say how pairs are ranked."""
    from trainer.export.folder import load_scorer
    from trainer.model.cache import context_length
    from trainer.model.tokenizer import configured_tokenizer
    from trainer.sample.scoring import score_rows

    options = config.evaluate.scores
    refuse(list(score_problems(options)))
    run_dir = Path(config.run_dir).expanduser()
    is_run = config_path(run_dir).exists()
    folder = Path(config.export.output_dir or run_dir / "export").expanduser() if is_run else run_dir
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        fix = (
            f"palimpsest export {run_dir}"
            if is_run
            else "Give the folder of an exported reward model, or its run."
        )
        raise ConfigError(
            f"`evaluate.scores.file` must be scored by an exported model, but {folder} holds none. "
            f"{f'Export it first: {fix}' if is_run else fix}"
        )
    model = load_scorer(folder, config.model.trust_remote_code)
    tokenizer = configured_tokenizer(
        ModelConfig(trust_remote_code=config.model.trust_remote_code), str(folder)
    )
    as_chat = _as_chat(config, is_run, tokenizer.has_chat_template)
    output = Path(options.output_dir) if options.output_dir else run_dir / "scores" if is_run else None
    output = (folder.with_name(f"{folder.name}-scores") if output is None else output).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    file = Path(options.file or "")
    if options.generator is not None:
        file = _answer(options, config.model.trust_remote_code, file, output)
    rows = list(read_rows(file, tokenizer, as_chat, context_length(model.config)))
    scores = score_rows(model, rows, config.evaluate.micro_batch_size)
    _write(rows, scores, output, as_chat)
    return Exit.done


def _answer(options: ScoresConfig, trust_remote_code: bool, file: Path, output: Path) -> Path:
    """Let the generator answer the prompts of a file; return the file with the answers."""
    from trainer.export.folder import load_generator
    from trainer.model.tokenizer import configured_tokenizer
    from trainer.sample.prompted import AnswerSampler

    folder = Path(options.generator or "").expanduser()
    model = load_generator(folder, trust_remote_code)
    tokenizer = configured_tokenizer(ModelConfig(trust_remote_code=trust_remote_code), str(folder))
    sampler = AnswerSampler(model, tokenizer, options)
    rows = [sampler.answer(row, number) for number, (_, row) in enumerate(read_objects(file))]
    answered = output / "answers.jsonl"
    _write_lines(answered, [row for row in rows if row["answers"]])
    silent = sum(not row["answers"] for row in rows)
    print(
        f"{len(rows) - silent} prompts answered by {folder}, {options.num_answers} times each: {answered}. Left out as "
        f"empty: {sampler.num_empty} answers, {silent} prompts with no other."
    )
    return answered


def _as_chat(config: RunConfig, is_run: bool, has_template: bool) -> bool:
    asked = config.evaluate.scores.as_chat
    if asked is None and is_run:
        return any(source.as_chat for source in config.data.sources.values())
    if asked and not has_template:
        raise ConfigError(
            "`evaluate.scores.as_chat` must be false without a chat template, but is True instead. Leave it out."
        )
    return has_template if asked is None else asked


def _write(rows: Sequence[RowToScore], scores: list[list[float]], output: Path, as_chat: bool) -> None:
    pairs = list(zip(rows, scores, strict=True))
    _write_lines(output / "scores.jsonl", [with_scores(row, found) for row, found in pairs])
    dropped = [row.dropped for row in rows if row.dropped]
    summary: dict[str, Any] = {"rows": len(rows), "dropped": len(dropped), "as_chat": as_chat}
    num_scored = len(rows) - len(dropped)
    print(
        f"{num_scored} rows scored{' as chats' * as_chat}, {len(dropped)} dropped: {output / 'scores.jsonl'}"
    )
    for why in dict.fromkeys(dropped):
        print(f"  dropped, {why}: {dropped.count(why)}")
    kept = [(row, found) for row, found in pairs if not row.dropped]
    if num_empty := sum(not tokens for row, _ in kept for tokens in row.tokens_A):
        summary["empty_answers"] = num_empty
        print(f"  left out as empty: {many(num_empty, 'answer')}")
    if ranked := [(row, found) for row, found in kept if row.is_pair]:
        summary["pairs"] = _ranked(ranked)
    if several := [(row, found) for row, found in kept if row.has_several and not row.is_pair]:
        best = [best_of(row, found) for row, found in several]
        _write_lines(output / "best.jsonl", [learnt for learnt, _ in best])
        beside = [pair for _, pair in best if pair is not None]
        _write_lines(output / "pairs.jsonl", beside)
        mean = float(np.mean([np.nanmax(found) - float(np.nanmean(found)) for _, found in several]))
        summary["best_of"] = {"rows": len(best), "pairs": len(beside), "ties": len(best) - len(beside)}
        print(
            f"Best of several answers: {len(best)} conversations in {output / 'best.jsonl'}, {mean:+.4g} above the "
            f"mean of their row; {len(beside)} pairs of best and worst in {output / 'pairs.jsonl'}, "
            f"{len(best) - len(beside)} tie and make none."
        )
    write_atomic(output / "summary.json", json.dumps(summary, indent=2) + "\n")


def _ranked(ranked: Sequence[tuple[RowToScore, list[float]]]) -> dict[str, Any]:
    """Say how pairs are ranked, and return it as it is kept."""
    from trainer.evaluate.held_out_scores import PairScores
    from trainer.objective.reward.judged_scores import judge_scores
    from trainer.run.held_out_pairs import told

    table = np.array([found for _, found in ranked])
    tokens = np.array([row.num_learnt_A for row, _ in ranked], dtype=np.int64)
    none = np.zeros(len(ranked))
    judged = judge_scores(
        PairScores(table[:, 0], table[:, 1], none, tokens[:, 0], tokens[:, 1]), RewardConfig()
    )
    print(f"Pairs: {told(judged)}")
    return judged.to_plain()


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
