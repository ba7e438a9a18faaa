"""The rounds of a run, built from its parts: who answers, which prompts, and what must not be said."""

from __future__ import annotations

from trainer.config.teacher import distilled
from trainer.errors import ModelError
from trainer.mix.loader import StepReader
from trainer.mix.mixing import Mixing
from trainer.model.cache import end_tokens
from trainer.objective.contract import Objective
from trainer.rounds.asked_pieces import check_prompts
from trainer.rounds.round_loader import RoundLoader
from trainer.rounds.rounds import RoundPlan, Rounds
from trainer.run.session import Session
from trainer.run.teacher_ids import OtherIds, ids_of_teacher
from trainer.sample.answering import answer_stops
from trainer.sample.keyed import KeyedSampler


def build_rounds(session: Session, mixing: Mixing, objective: Objective) -> Rounds | None:
    """Return the rounds of a run; None where it learns from what the data says alone. Collective: every rank.

    Raises:
        DataError: No document has a prompt.
        ModelError: The model carries something along a row, which padding would change.
    """
    config = session.config
    if not config.objective.has_rounds:
        return None
    options, sources = config.objective.distill.on_policy, distilled(config.data.sources)
    stores = [store.train for store in session.stores.values()]
    names = list(session.stores)
    if session.policy.carries:
        raise ModelError(
            "`objective.distill.on_policy.share` must be 0 for a model whose layers carry a state from token to token, "
            f"but is {options.share:g} instead: its answers are not sampled side by side yet. Set it to 0."
        )
    session.mesh.from_first(lambda: check_prompts(stores, names, sources))
    others = session.mesh.from_first(lambda: ids_of_teacher(config, session.tokenizer))
    reader = StepReader(
        names,
        stores,
        session.mesh.data,
        config.train.micro_batch_size,
        session.pad_id,
        objective.attach,
    )
    layout = RoundPlan(
        mixing.num_steps, options.steps_per_round, options.share, options.max_new_tokens, config.seed
    )
    loader = RoundLoader(reader, mixing.plan, sources)
    return Rounds(session.mesh, session.run_dir, layout, _sampler(session, others), loader, stores, sources)


def _sampler(session: Session, others: OtherIds) -> KeyedSampler:
    """Return who answers: only in tokens that the teacher knows as the same ones."""
    config, loaded = session.config, session.loaded
    options = config.objective.distill.on_policy
    return KeyedSampler(
        policy=session.policy,
        hf_config=loaded.model.config,
        pad_id=session.pad_id,
        end_ids=frozenset(answer_stops(session.tokenizer, sorted(end_tokens(loaded.model)))),
        max_length=config.data.seq_len,
        temperature=options.temperature,
        batch_size=options.batch_size,
        seed=config.seed,
        num_ids=others.num_ids,
        never=tuple(sorted(others.tokens)),
    )
