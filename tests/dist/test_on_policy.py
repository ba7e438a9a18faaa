"""On-policy distillation: answers and steps are those of plain torch with TRL's loss, and resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dist.session import config_of, plain_adamw
from tests.dist.test_zero import FP32, cosine
from tests.helpers.tiny import SEQ_LEN, save_llama
from trainer.checkpoint.layout import STATE, step_dir
from trainer.checkpoint.state import TrainState
from trainer.errors import CheckpointError

KEYS = ("loss", "divergence", "cross_entropy", "loss/text", "grad_norm")
LONGEST = 12
POLICY = "objective.distill.on_policy"
END, SEED = 1, 1234


def config_for(workspace: str, data: str, run_dir: str | Path, *overrides: str) -> Any:
    key = "objective.distill"
    return config_of(
        workspace,
        run_dir,
        *("data.sources.text.role=replay", "replay.ratio=0.4", "objective.kind=distill"),
        *(f"{key}.teacher={data}/teacher", f"{key}.cached=false", f"{key}.divergence=reverse"),
        *(f"{key}.top=264", f"{POLICY}.share=1", f"{POLICY}.max_new_tokens={LONGEST}"),
        *(f"{POLICY}.batch_size=3", f"{POLICY}.steps_per_round=2", f"seed={SEED}"),
        *("train.micro_batch_size=2", "train.max_steps=6", "checkpoint.every_steps=3", "optim.lr=0.01"),
        *overrides,
    )


def make_teacher(mesh: Any, data: str) -> None:
    from transformers import AutoModelForCausalLM

    save_llama(Path(data) / "teacher", seed=9, hidden_size=48)
    teacher = AutoModelForCausalLM.from_pretrained(Path(data) / "teacher")
    with torch.no_grad():
        teacher.lm_head.weight.mul_(4)  # so that it is sure of something
        teacher.lm_head.weight[END].add_(0.3)
    teacher.save_pretrained(Path(data) / "teacher")


@pytest.fixture(scope="module")
def data(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("on_policy"))
    pool(1).run(make_teacher, data=folder)
    return folder


def take_steps(session: Any, stack: ExitStack) -> tuple[list[dict[str, float]], list[str]]:
    """Train as a run does and return what every step said, and the digests of rounds."""
    from trainer.config.teacher import distilled
    from trainer.objective.build import build_objective
    from trainer.optim.schedule import lr_factor
    from trainer.run.open_rounds import build_rounds
    from trainer.run.step import train_step
    from trainer.run.teaching import build_teacher

    config, mixing = session.config, session.mixing()
    units = [store.train.unit for store in session.stores.values()]
    teacher = build_teacher(session, mixing, stack)
    numbers = distilled(config.data.sources)
    objective = build_objective(config.objective, list(session.stores), units, teacher, distilled=numbers)
    rounds = build_rounds(session, mixing, objective)
    assert rounds is not None
    state, records, digests = TrainState(), [], []
    for step in range(mixing.num_steps):
        if rounds.is_due(state):
            digests.append(rounds.make(state, lambda: None).digest)
        session.policy.engine.set_lr(config.optim.lr * lr_factor(step, mixing.num_steps, config.schedule))
        result = train_step(session.policy, objective, rounds.loader.take(step), stop=lambda: False)
        assert result.is_sound
        means = {mean.name: mean.of(result.sums) for mean in result.means}
        records.append({key: means.get(key, result.grad_norm) or 0.0 for key in KEYS})
        state.step += 1
    return records, digests


def trained(mesh: Any, workspace: str, data: str, run_dir: str, variants: list[list[str]]) -> Any:
    from tests.dist.session import session_of

    found = []
    for index, overrides in enumerate(variants):
        config = config_for(workspace, data, f"{run_dir}/{index}", *overrides)
        with session_of(config) as session, ExitStack() as stack:
            found.append(take_steps(session, stack))
    return found


def rounds_of(run_dir: Path) -> list[dict[tuple[str, int, int, int], dict[str, Any]]]:
    """Return the answers of every round, by source, pack, pass and piece."""
    found = []
    for file in sorted((run_dir / "rounds").glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
        found.append({(one["source"], one["pack"], one["epoch"], one["piece"]): one for one in lines})
    return found


def prompt_of(tokens: np.ndarray, supervised: np.ndarray) -> list[int]:
    """Return what stands before the answer: of these documents one run at the end is learnt."""
    return [int(token) for token in tokens[: int(supervised.argmax())]]


def drawn_by_hand(model: Any, prompt: list[int], key: str, longest: int) -> list[int]:
    """Sample an answer alone, the whole text anew for every token, by the sum of probabilities in NumPy."""
    digest = hashlib.sha256(f"palimpsest-answer:{SEED}:{key}".encode()).digest()
    numbers = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(longest)
    answer: list[int] = []
    for number in numbers:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, -1]
        upto = np.cumsum(torch.softmax(logits.double(), dim=-1).numpy())
        answer.append(int(np.searchsorted(upto, number * upto[-1], side="right")))
        if answer[-1] == END:
            break
    return answer


def documents_of(drawn: list[Any], answers: dict[Any, Any]) -> Any:
    """Yield the documents of a step: tokens, how many of them are the prompt, and the key of one that was answered."""
    for name, ref, pack in drawn:
        start = 0
        for piece, length in enumerate(pack.lengths):
            tokens, marks = (each[start : start + length] for each in (pack.tokens, pack.supervised))
            start += length
            if name == "text":
                yield torch.from_numpy(tokens), 1, ""
                continue
            prompt = prompt_of(tokens, marks)
            said = answers[name, ref.pack, ref.epoch, piece]["tokens"]
            yield torch.tensor(prompt + said), len(prompt), f"{name}:{ref.pack}:{ref.epoch}:{piece}"


def drawn_packs(config: Any) -> list[Any]:
    """Return the packs of every step, each with the name of its source and its reference."""
    from tests.dist.session import session_of

    with session_of(config) as session:
        mixing, names = session.mixing(), list(session.stores)
        return [
            [(names[r.source], r, session.stores[names[r.source]].train.pack(r.pack)) for r in refs]
            for refs in (mixing.plan.packs_of_step(step) for step in range(mixing.num_steps))
        ]


def plain_torch(mesh: Any, workspace: str, data: str, run_dir: str, sampled: str) -> Any:
    """Train with nothing of ours but which packs come and what was sampled; sample the first round anew."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from transformers import AutoModelForCausalLM
    from trl.experimental.gkd import GKDTrainer

    packs, answers = drawn_packs(config_for(workspace, data, run_dir)), rounds_of(Path(sampled))
    places = (Path(workspace) / "model", Path(data) / "teacher", Path(workspace) / "model")
    model, teacher, begun = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in places)
    optimizer, records, wrong = plain_adamw(model), [], []
    for step, drawn in enumerate(packs):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * ((step + 1) / 2 if step < 2 else cosine((step - 2) / (len(packs) - 2), 0.1))
        divergence, nll, other = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        num = num_other = 0
        for ids, begin, key in documents_of(drawn, answers[step // 2]):
            labels = torch.full_like(ids, -100)
            labels[begin - 1 : -1] = ids[begin:]
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            found = torch.nn.functional.cross_entropy(logits, labels, reduction="sum").double()
            if not key:
                other, num_other = other + found, num_other + len(ids) - begin
                continue
            nll, num = nll + found, num + len(ids) - begin
            with torch.no_grad():
                says = teacher(input_ids=ids[None], use_cache=False).logits
            divergence = divergence + GKDTrainer.generalized_jsd_loss(
                logits[None], says, labels[None], 1.0, 1.0, reduction="sum"
            )
            if step < 2:
                prompt, said = ids[:begin].tolist(), ids[begin:].tolist()
                if drawn_by_hand(begun, prompt, key, min(LONGEST, SEQ_LEN - begin)) != said:
                    wrong.append(key)
        loss = divergence / num + other / max(num_other, 1)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values = (loss, divergence / num, nll / num, other / max(num_other, 1), norm)
        records.append({key: float(value) for key, value in zip(KEYS, values, strict=True)})
    return records, wrong, [len(one["tokens"]) for one in answers[0].values()]


def assert_alike(records: list[dict[str, float]], wanted: list[dict[str, float]], rel: float) -> None:
    for step, (record, plain) in enumerate(zip(records, wanted, strict=True)):
        for key in KEYS:
            assert record[key] == pytest.approx(plain[key], rel=rel), (step, key)


STAGES = [["zero.stage=0"], ["zero.stage=3", "train.micro_batch_size=1"]]


def test_rounds_are_sampled_and_learnt_as_plain_torch_does_on_any_ranks(pool, workspace, data, tmp_path):
    """Other tokens: padding, the cache, or batches by rank. Other steps: labels, or counts of the data's answers."""
    arguments = {"workspace": workspace, "data": data}
    alone = pool(1).run(trained, run_dir=str(tmp_path / "1"), variants=[["zero.stage=2"]], **arguments)[0]
    both = pool(2).run(trained, run_dir=str(tmp_path / "2"), variants=STAGES, **arguments)
    assert both[0] == both[1], "ranks report different numbers"
    records, digests = alone[0]
    assert len(digests) == 3 and len(set(digests)) == 3
    assert all(other == digests for _, other in both[0])
    plain, sampled = str(tmp_path / "plain"), str(tmp_path / "1" / "0")
    wanted, wrong, lengths = pool(1).run(plain_torch, run_dir=plain, sampled=sampled, **arguments)[0]
    assert len(lengths) > 10 and not wrong
    assert min(lengths) < LONGEST == max(lengths), "some end, and some are cut"
    assert_alike(records, wanted, rel=1e-5)
    for found, _ in both[0]:
        assert_alike(found, wanted, rel=10 * FP32)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(pool, workspace, data, tmp_path):
    words = [f"objective.distill.teacher={workspace}/model", "replay.ratio=0", "train.max_steps=1"]
    variants = [
        [*words, f"objective.distill.divergence={kind}", f"objective.distill.top={top}"]
        for kind, top in (("reverse", 264), ("forward", 8), ("jsd", 8))
    ]
    found = pool(1).run(trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants)[0]
    for (record,), _ in found:
        assert abs(record["divergence"]) < 1e-6 and record["grad_norm"] < 1e-6


@pytest.mark.slow
def test_adapters_learn_the_same_whatever_the_ranks_and_the_stage(pool, workspace, data, tmp_path):
    lora = ["tune.method=lora", "tune.r=4", "train.max_steps=3", "objective.distill.top=8"]
    arguments = {"workspace": workspace, "data": data}
    alone = pool(1).run(trained, run_dir=str(tmp_path / "1"), variants=[[*lora, *STAGES[0]]], **arguments)[0]
    both = pool(2).run(trained, run_dir=str(tmp_path / "2"), variants=[[*lora, *STAGES[1]]], **arguments)[0]
    assert both[0][1] == alone[0][1]
    assert_alike(both[0][0], alone[0][0], rel=10 * FP32)


def train(mesh: Any, workspace: str, data: str, run_dir: str, overrides: list[str]) -> str:
    from trainer.run import training

    try:
        return str(training.run_training(config_for(workspace, data, run_dir, *overrides)).value)
    except CheckpointError as error:
        return str(error)


def rows(run_dir: Path) -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: {key: r.get(key, 0.0) for key in KEYS} for r in records if "loss" in r}


def state_of(run_dir: Path) -> dict[str, Any]:
    state = json.loads((step_dir(run_dir, 6) / STATE).read_text())
    del state["attempts"]
    return state


def test_a_run_that_goes_on_in_the_middle_of_a_round_is_bitwise_the_same(pool, workspace, data, tmp_path):
    """Step 3 is the second of two steps of a round. With dropout, whose random numbers sampling must not move."""
    whole, kept = tmp_path / "whole", tmp_path / "kept"
    words = [f"model.path={workspace}/dropout", f"{POLICY}.share=0.7", "zero.stage=2", "zero.dtype=bf16"]
    arguments = {"workspace": workspace, "data": data, "overrides": words}
    assert pool(2).run(train, run_dir=str(whole), **arguments) == ["finished"] * 2
    shutil.copytree(step_dir(whole, 3), step_dir(kept, 3))
    said = pool(2).run(train, run_dir=str(kept), **arguments)[0]
    assert f"{kept}/rounds/000001.jsonl must hold the answers that the run learns from" in said
    shutil.copytree(whole / "rounds", kept / "rounds")
    (kept / "rounds" / "000002.jsonl").write_text("of an attempt that died\n")
    changed = kept / "rounds" / "000001.jsonl"
    before = changed.read_text()
    changed.write_text(before.replace('"tokens": [', '"tokens": [9, ', 1))
    assert "its answers have the digest" in pool(2).run(train, run_dir=str(kept), **arguments)[0]
    changed.write_text(before)
    assert pool(2).run(train, run_dir=str(kept), **arguments) == ["finished"] * 2
    wanted = rows(whole)
    assert sorted(wanted) == [1, 2, 3, 4, 5, 6]
    assert rows(kept) == {step: wanted[step] for step in (4, 5, 6)}
    assert state_of(kept) == state_of(whole) and state_of(whole)["round"]["number"] == 2
    for number in range(3):
        name = f"rounds/{number:06d}.jsonl"
        assert (kept / name).read_bytes() == (whole / name).read_bytes()
    events = [json.loads(line) for line in (whole / "ledger.jsonl").read_text().splitlines()]
    sampled = [event for event in events if event.get("event") == "sampled"]
    assert [event["number"] for event in sampled] == [0, 1, 2] and all(e["num_given"] for e in sampled)
    assert sampled[-1]["digest"] == state_of(whole)["round"]["digest"]


def nearness(mesh: Any, workspace: str, data: str, run_dir: str, words: list[str]) -> tuple[float, float]:
    """Return the reverse KL of a student on answers to held-out prompts, before and after it was trained."""
    from transformers import AutoModelForCausalLM

    from tests.dist.session import session_of
    from trainer.sample.keyed import KeyedPrompt, KeyedSampler

    teacher = AutoModelForCausalLM.from_pretrained(Path(data) / "teacher", dtype=torch.float32)
    with session_of(config_for(workspace, data, run_dir, *words)) as session, ExitStack() as stack:
        split = session.stores["chat"].validation
        prompts = []
        for number in range(split.num_packs):
            pack, start = split.pack(number), 0
            for length in pack.lengths:
                piece = slice(start, start + length)
                prompts.append(prompt_of(pack.tokens[piece], pack.supervised[piece])[-20:])
                start += length
        asked = [KeyedPrompt(str(i), prompt, 16) for i, prompt in enumerate(prompts) if prompt]
        policy, hf_config = session.policy, session.loaded.model.config
        sampler = KeyedSampler(policy, hf_config, 0, frozenset([END]), SEQ_LEN, 1.0, 8, 0)

        def distance() -> float:
            total, num = 0.0, 0
            for prompt, answer in zip(asked, sampler.sample(asked), strict=True):
                ids = torch.tensor([prompt.tokens + answer.tokens])
                with torch.no_grad():
                    own = session.loaded.model.eval()(input_ids=ids, use_cache=False).logits[0].double()
                    says = teacher(input_ids=ids, use_cache=False).logits[0].double()
                at = slice(len(prompt.tokens) - 1, -1)
                log_q, log_p = (torch.log_softmax(logits[at], dim=-1) for logits in (own, says))
                total, num = total + float((log_q.exp() * (log_q - log_p)).sum()), num + len(answer.tokens)
            session.loaded.model.train()
            return total / num

        before = distance()
        take_steps(session, stack)
        return before, distance()


def test_a_student_comes_nearer_to_its_teacher_on_prompts_that_it_did_not_see(
    pool, workspace, data, tmp_path
):
    words = ["train.max_steps=20", "replay.ratio=0", f"{POLICY}.steps_per_round=1", "zero.stage=0"]
    before, after = pool(1).run(nearness, workspace=workspace, data=data, run_dir=str(tmp_path), words=words)[
        0
    ]
    assert after < 0.8 * before, (before, after)


def prepare(mesh: Any, workspace: str, data: str, words: list[str]) -> None:
    from trainer.command.prepare import prepare_data

    prepare_data(config_for(workspace, data, Path(data) / "unused", *words))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "words"),
    [(3, ["zero.stage=1"]), (2, ["data.packing=none", "data.sources.chat.packing=null"])],
)
def test_more_ranks_and_rows_of_their_own_take_the_same_steps(
    pool, workspace, data, tmp_path, num_ranks, words
):
    """Of three ranks one has nothing but fillers in some micro-batches. As rows, documents are packed otherwise."""
    words = [
        *words,
        "train.micro_batch_size=1",
        "train.global_batch_tokens=384",
        f"data.cache_dir={tmp_path}",
    ]
    pool(1).run(prepare, workspace=workspace, data=data, words=words)
    arguments = {"workspace": workspace, "data": data, "variants": [words]}
    alone = pool(1).run(trained, run_dir=str(tmp_path / "1"), **arguments)[0]
    many = pool(num_ranks).run(trained, run_dir=str(tmp_path / "many"), **arguments)
    assert all(found == many[0] for found in many) and many[0][0][1] == alone[0][1]
    assert_alike(many[0][0][0], alone[0][0], rel=10 * FP32)


def train_through_a_spike_in_rounds(mesh: Any, workspace: str, data: str, run_dir: str) -> Any:
    from tests.dist.test_spikes import train_through_a_spike, words_of
    from trainer.config.snapshot import freeze

    if mesh.is_first:
        words = [*words_of("rewind"), "log.trackers=[]", f"{POLICY}.steps_per_round=3", "optim.lr=1e-3"]
        freeze(config_for(workspace, data, run_dir, *words), Path(run_dir))
    mesh.barrier()
    return train_through_a_spike(mesh, workspace, run_dir, "rewind")


@pytest.mark.slow
def test_a_run_that_goes_back_before_a_spike_stands_in_the_round_of_that_step(
    pool, workspace, data, tmp_path
):
    """The ninth step spikes, and step 4 is gone back to, the first of three of a round; the next round comes again."""
    run_dir = tmp_path / "run"
    arguments = {"workspace": workspace, "data": data, "run_dir": str(run_dir)}
    assert pool(2).run(train_through_a_spike_in_rounds, **arguments) == ["finished"] * 2
    events = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    told = [(e["event"], e["step"]) for e in events if e["event"] in ("spike", "went_back", "passed_over")]
    assert told == [("spike", 9), ("went_back", 4), ("passed_over", 8)]
    sampled = [event for event in events if event["event"] == "sampled"]
    assert [event["number"] for event in sampled] == [0, 1, 2, 2, 3]
    assert sampled[2]["digest"] == sampled[3]["digest"], "the same weights answer"
    lines = map(json.loads, (run_dir / "metrics.jsonl").open())
    again = {row["step"]: row for row in lines if "loss" in row}
    (aside,) = run_dir.glob("abandoned-*/metrics.jsonl")
    before = [row for row in map(json.loads, aside.open()) if "loss" in row and row["step"] < 9]
    assert [row["step"] for row in before] == [5, 6, 7, 8]
    assert all(row["loss"] == again[row["step"]]["loss"] for row in before)
