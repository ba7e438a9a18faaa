"""The learning rate that a recipe chose, where other parameters train than it chose it for."""

from __future__ import annotations

from trainer.config.options import shipped_options
from trainer.config.schema import RunConfig, RunKind
from trainer.config.tune import WEIGHTS, TuneMethod
from trainer.errors import ConfigError

CHOSEN_FOR = {
    RunKind.full_finetune: WEIGHTS,
    RunKind.continued_pretrain: WEIGHTS,
    RunKind.lora: (TuneMethod.lora,),
    RunKind.qlora: (TuneMethod.lora,),
    RunKind.dpo: WEIGHTS,
    RunKind.preference_lora: (TuneMethod.lora,),
    RunKind.reward: WEIGHTS,
    RunKind.reward_lora: (TuneMethod.lora,),
}
"""What trains where the rate of a recipe holds."""
USUAL = {
    TuneMethod.lora: "1e-4",
    TuneMethod.ia3: "3e-3",
    TuneMethod.prefix: "1e-2",
    TuneMethod.prompt: "3e-2",
}
"""Usual rates of what trains beside a frozen base; the comments in conf/tune say whose."""
OF_WEIGHTS = {RunKind.preference_lora: RunKind.dpo, RunKind.reward_lora: RunKind.reward}
"""The recipe of all weights that goes with one of an adapter, where it is another than full_finetune."""
OF_PREFERENCES = 0.05
"""What recipes of preferences take of them."""


def is_others(config: RunConfig) -> bool:
    """Tell whether the rate is that of the recipe, and other parameters train than the recipe chose it for."""
    method = config.tune.method
    chosen_for = CHOSEN_FOR.get(config.kind, (method,))
    return method not in chosen_for and config.optim.lr == recipe_rate(config.kind.value)


def said_of(config: RunConfig) -> str:
    """Return what to say of a rate that nobody but the recipe chose, where it is for other parameters.

    Raises:
        ConfigError: It is that of an adapter, ten times too high, and weights of the model train.
    """
    recipe, method, rate = config.kind.value, config.tune.method, config.optim.lr
    if config.tune.trains_weights:
        whole = OF_WEIGHTS.get(config.kind, RunKind.full_finetune).value
        raise ConfigError(
            f"`optim.lr` must be chosen for tune.method={method.value}, but is {rate:g} instead, which recipe={recipe} "
            f"chose for an adapter. Set recipe={whole}, or optim.lr={recipe_rate(whole):g}."
        )
    usual = USUAL[method]
    if _is_of_preferences(config):
        usual = f"{float(usual) * OF_PREFERENCES:.0e}".replace("e-0", "e-")
    return (
        f"optim.lr={rate:g} is what recipe={recipe} chose for other parameters; for tune.method={method.value} "
        f"{usual} is usual. Set optim.lr to say which."
    )


def _is_of_preferences(config: RunConfig) -> bool:
    return config.kind in (RunKind.dpo, RunKind.preference_lora)


def recipe_rate(name: str) -> float | None:
    """Return the learning rate that a recipe sets, by itself or by the one that it goes on from."""
    recipe = next((one for one in shipped_options() if (one.group, one.name) == ("recipe", name)), None)
    if recipe is None:
        return None
    own = recipe.values.get("optim.lr")
    return float(own) if own is not None else next(filter(None, map(recipe_rate, recipe.parents)), None)
