"""How far a run is from its base, as it is logged at every evaluation."""

from types import SimpleNamespace

from trainer.checkpoint.state import TrainState
from trainer.config.data import Role, SourceConfig
from trainer.run.evaluator import Evaluator

ROLES = {"new": Role.target, "old": Role.replay, "maths": Role.probe}


def evaluator():
    mixing = SimpleNamespace(sources={name: SourceConfig(role=role) for name, role in ROLES.items()})
    return Evaluator(None, None, mixing, None, None, None, takes_kl=False)


def test_every_source_has_its_rise_and_the_mean_is_of_what_is_not_to_be_learnt():
    state = TrainState(step=5, base_losses={"new": 3.0, "old": 2.0, "maths": 1.0})
    state.last_losses = {"new": 2.0, "old": 2.5, "maths": 1.25, "later": 9.0}
    assert evaluator().drift(state) == {
        "forgetting/new": -1.0,
        "forgetting/old": 0.5,
        "forgetting/maths": 0.25,
        "forgetting": 0.375,
    }


def test_the_base_itself_has_forgotten_nothing():
    assert evaluator().drift(TrainState(step=0, base_losses={"old": 2.0}, last_losses={"old": 2.0})) == {}
