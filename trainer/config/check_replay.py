"""Rules about the roles and weights of sources, the replay ratio, its schedule and its controller. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainer.config.data import Role, SourceConfig, TokenValue
from trainer.config.objective import ObjectiveKind
from trainer.config.replay import RatioController, RatioSchedule, ReplayChoice, ReplayConfig
from trainer.config.rule import Problem, must, problem
from trainer.config.schema import RunConfig


def replay_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    sources, replay = config.data.sources, config.replay
    if sources:
        yield from _role_problems(sources, replay)
    yield from _ratio_problems(replay)
    yield from _schedule_problems(replay)
    if replay.controller is RatioController.hold:
        yield from _controller_problems(config)
    yield from _kl_problems(sources, replay)
    yield from _weight_of_loss_problems(config)
    if replay.choice is ReplayChoice.losing:
        yield from _choice_problems(config)


def _role_problems(sources: dict[str, SourceConfig], replay: ReplayConfig) -> Iterator[Problem]:
    roles = {role: [name for name, s in sources.items() if s.role is role] for role in Role}
    if not roles[Role.target]:
        yield problem(
            "data.sources",
            f"must have a source with role=target, but has only {', '.join(sources)} instead. "
            "Set data.sources.NAME.role=target for what is to be learnt.",
            is_open=True,
        )
    asked = f"replay.ratio={replay.ratio}" if replay.ratio else ""
    if replay.shift is not None and not asked:
        asked = f"replay.shift={replay.shift.name}"
    if asked and not roles[Role.replay]:
        yield _nothing_to_replay(asked)
    for name, source in sources.items():
        key = f"data.sources.{name}"
        if source.weight is not None and source.role is Role.probe:
            yield must(f"{key}.weight", "null for role=probe", source.weight, "A probe is never trained on.")
        elif source.weight is not None and not source.weight >= 0:
            yield must(f"{key}.weight", "0 or more", source.weight, "Weights are shares on any scale.")
        if source.max_epochs is not None and not source.max_epochs > 0:
            yield must(f"{key}.max_epochs", "more than 0", source.max_epochs, "Set null for any number.")
    for role in (Role.target, Role.replay):
        yield from _weight_problems(role, {name: sources[name].weight for name in roles[role]})


def _nothing_to_replay(asked: str) -> Problem:
    return problem(
        "data.sources",
        f"must have a source with role=replay for {asked}, but has none instead. "
        "Use replay=general, or set data.sources.NAME.role=replay.",
    )


def _weight_problems(role: Role, weights: dict[str, float | None]) -> Iterator[Problem]:
    given = [weight for weight in weights.values() if weight is not None]
    without = [name for name, weight in weights.items() if weight is None]
    if given and without:
        yield problem(
            "data.sources",
            f"must give all sources with role={role.name} a weight or none, but "
            f"{', '.join(without)} has none instead. Set data.sources.{without[0]}.weight.",
        )
    elif given and not sum(given) > 0:
        yield problem(
            "data.sources",
            f"must have weights with a sum above 0 for role={role.name}, but their sum is "
            f"{sum(given):g} instead. Raise data.sources.{next(iter(weights))}.weight.",
        )


def _ratio_problems(replay: ReplayConfig) -> Iterator[Problem]:
    for key in ("ratio", "end_ratio", "min_ratio", "max_ratio"):
        value = getattr(replay, key)
        if value is not None and not 0 <= value < 1:
            yield must(f"replay.{key}", "in [0, 1)", value, "It is a share of supervised tokens; set 0.05.")


def _schedule_problems(replay: ReplayConfig) -> Iterator[Problem]:
    if replay.schedule in (RatioSchedule.linear, RatioSchedule.cosine) and replay.end_ratio is None:
        yield must(
            "replay.end_ratio",
            f"given for schedule={replay.schedule.name}",
            None,
            "Set replay.end_ratio=0.01.",
        )
    if not 0 <= replay.front_frac <= 1:
        yield must("replay.front_frac", "in [0, 1]", replay.front_frac, "It is a share of the run.")
    if replay.schedule is not RatioSchedule.piecewise:
        return
    fix = "Set replay.points=[[0,0.1],[0.5,0.02]]."
    points = replay.points
    if not points or not all(_is_point(point) for point in points):
        yield must("replay.points", "a list of [share, ratio]", points, fix)
        return
    shares = [share for share, _ in points]
    if shares[0] != 0 or sorted(set(shares)) != shares or not shares[-1] < 1:
        yield must("replay.points", "shares that rise from 0 and stay below 1", points, fix)
    if any(not 0 <= ratio < 1 for _, ratio in points):
        yield must("replay.points", "ratios in [0, 1)", points, fix)


def _is_point(point: object) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(isinstance(n, int | float) for n in point)


def _controller_problems(config: RunConfig) -> Iterator[Problem]:
    replay, sources = config.replay, config.data.sources
    if not replay.epsilon > 0:
        yield must("replay.epsilon", "more than 0", replay.epsilon, "Set 0.05 nats.")
    if replay.epsilon_kl is not None:
        yield from _epsilon_kl_problems(config, replay.epsilon_kl)
    if not replay.max_change > 0:
        yield must("replay.max_change", "more than 0", replay.max_change, "Set 0.02.")
    if replay.min_ratio > replay.max_ratio:
        yield must(
            "replay.min_ratio", f"at most max_ratio ({replay.max_ratio})", replay.min_ratio, "Lower it."
        )
    if config.evaluate.every_steps == 0:
        yield must(
            "evaluate.every_steps", "more than 0 for controller=hold", 0, "Set evaluate.every_steps=100."
        )
    if sources and not any(source.role is Role.replay for source in sources.values()):
        yield _nothing_to_replay("replay.controller=hold")
    for name in replay.watch:
        if name not in sources:
            known = ", ".join(sources)
            yield must("replay.watch", f"names of data.sources ({known})", name, "Name one of them.")
    if not any(s.role is Role.probe for s in sources.values()) and config.data.validation_frac == 0:
        yield must(
            "data.validation_frac", "more than 0 for controller=hold without a probe", 0.0, "Set 0.02."
        )


def _epsilon_kl_problems(config: RunConfig, epsilon: float) -> Iterator[Problem]:
    key, evaluate = "replay.epsilon_kl", config.evaluate
    if not 0 < epsilon < math.inf:
        yield must(key, "null or a finite number above 0", epsilon, "Set 0.05 nats.")
    if config.objective.kind is ObjectiveKind.reward:
        rule = f"null with {config.objective.named}, which answers nothing"
        yield must(key, rule, epsilon, "Leave it out.")
    elif not evaluate.forgetting or evaluate.kl_packs < 1:
        asked, value = ("forgetting", False) if not evaluate.forgetting else ("kl_packs", evaluate.kl_packs)
        rule = f"{'true' if not evaluate.forgetting else 'more than 0'} with {key}"
        fix = "What the base answers is kept for both: set it to true." if value is False else "Set 16."
        yield must(f"evaluate.{asked}", rule, value, fix)


def _kl_problems(sources: dict[str, SourceConfig], replay: ReplayConfig) -> Iterator[Problem]:
    beta = replay.kl.beta
    if not 0 <= beta < math.inf:
        yield must("replay.kl.beta", "0 (off) or a finite number above it", beta, "Set 0.5.")
    elif beta and sources and not any(source.role is Role.replay for source in sources.values()):
        yield _nothing_to_replay(f"replay.kl.beta={beta:g}")
    if replay.kl.top < 1:
        yield must("replay.kl.top", "at least 1", replay.kl.top, "Set 64.")


def _weight_of_loss_problems(config: RunConfig) -> Iterator[Problem]:
    weight, sources, objective = config.replay.loss_weight, config.data.sources, config.objective
    key = "replay.loss_weight"
    if not 0 < weight < math.inf:
        fix = "Set 1, or leave replay out with replay.ratio=0."
        yield must(key, "a finite number above 0", weight, fix)
    elif weight == 1:
        return
    elif objective.kind is not ObjectiveKind.causal_lm:
        fix = "Set it to 1, or objective=causal_lm."
        if TokenValue.weight in objective.values:
            fix = "Set it to 1 and give the rows of replay a weight, or set objective=causal_lm."
        yield must(key, f"1 with {objective.named}", weight, fix)
    elif sources and not any(source.role is Role.replay for source in sources.values()):
        yield _nothing_to_replay(f"{key}={weight:g}")


def _choice_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what cannot be chosen by its loss: nothing, or rows whose tokens no loss is taken of."""
    replay, sources, objective = config.replay, config.data.sources, config.objective
    if replay.choice_every < 1:
        yield must("replay.choice_every", "at least 1", replay.choice_every, "Set replay.choice_every=100.")
    if replay.choice_of < 2:
        fix = "Set 4, or replay.choice=uniform."
        yield must("replay.choice_of", "at least 2, to choose among", replay.choice_of, fix)
    replayed = {name: source for name, source in sources.items() if source.role is Role.replay}
    if sources and not replayed:
        yield _nothing_to_replay("replay.choice=losing")
    uniform = "Set replay.choice=uniform"
    if objective.kind is ObjectiveKind.reward:
        yield must(
            "replay.choice",
            f"uniform with {objective.named}, which learns no tokens",
            "losing",
            f"{uniform}.",
        )
    for name, source in replayed.items():
        if source.holds_preferences and objective.kind is ObjectiveKind.preference:
            rule = f"uniform with format={source.format.value} of the replay source {name}, which is learnt by no token"
            yield must("replay.choice", rule, "losing", f"{uniform}, or replay text or chats.")
            return
    if objective.kind is ObjectiveKind.preference and not objective.preference.text_weight:
        rule = (
            f"uniform with objective.preference.text_weight=0, with which {objective.named} learns no replay"
        )
        yield must("replay.choice", rule, "losing", f"{uniform}, or objective.preference.text_weight=1.")
