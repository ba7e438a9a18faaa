"""How far a run is from its base, as it is logged at every evaluation."""

from types import SimpleNamespace

import pytest

from trainer.checkpoint.state import TrainState
from trainer.config.data import Role, SourceConfig
from trainer.config.preference import PreferenceConfig, PreferenceLoss
from trainer.config.store import compose_config
from trainer.data.formats.opened import AS_ONE
from trainer.objective.preference.judged import JudgedPairs, RankedPairs
from trainer.run.comparable import why_no_comparison, why_no_interval
from trainer.run.evaluator import Evaluator
from trainer.run.held_out_pairs import HeldOutPairs, told

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


def stores(notes=(), **documents):
    """Return stores of which nothing is held out, with so many documents."""
    return {
        name: SimpleNamespace(
            train=SimpleNamespace(num_documents=count),
            validation=SimpleNamespace(num_packs=0),
            meta={"notes": [*notes]},
        )
        for name, count in documents.items()
    }


def test_a_run_that_will_not_be_compared_with_its_base_is_told_why_and_what_to_do():
    config = compose_config(["data=text", "data.sources.corpus.path=book.txt"])
    assert why_no_comparison(config, stores([f"1 {AS_ONE}"], corpus=1)) == (
        "No comparison with the base at the end of this run: nothing is held out to measure it on (corpus has 1 "
        "document; data.validation_frac=0.02). A txt file is one document: split it with "
        "data.sources.corpus.txt_documents=paragraph (or line), or give more documents."
    )
    for count, fix in ((1, ": a source of one holds none out."), (2, ", or raise data.validation_frac.")):
        assert why_no_comparison(config, stores(corpus=count)).endswith(f"Give more documents{fix}"), "no txt"
    config.data.validation_frac = 0.0
    assert "Set data.validation_frac=0.02." in why_no_comparison(config, stores(corpus=50))


def test_a_run_that_is_compared_or_is_not_to_be_is_told_nothing():
    config = compose_config(["data=text", "data.sources.corpus.path=book.txt"])
    held = stores(corpus=50)
    held["corpus"].validation.num_packs = 1
    assert why_no_comparison(config, held) is None
    config.evaluate.forgetting = False
    assert why_no_comparison(config, stores(corpus=1)) is None


def test_a_run_whose_comparison_will_have_no_interval_is_told_before_it_trains():
    config = compose_config(["data=text", "data.sources.corpus.path=book.txt"])
    held = stores(corpus=3, more=400, none=1)
    for store, count in zip(held.values(), (1, 8, 0), strict=True):
        store.validation.num_documents = count
    said = why_no_interval(config, held)
    assert (
        said.startswith("No interval for corpus (1 document): it takes 5") and "data.validation_frac" in said
    )
    config.evaluate.forgetting = False
    assert why_no_interval(config, held) is None


def pairs(loss, **more):
    options = PreferenceConfig(loss=loss, **more)
    return HeldOutPairs(options, None, None)


def judged():
    rank = RankedPairs
    return {"new": JudgedPairs(0.5, 1.5, 0.25, -0.25, rank(100, 50), rank(40, 30), rank(0, 0))}


def test_the_mean_of_held_out_losses_beside_pairs_is_made_as_what_is_minimised():
    """By the cross-entropy of chosen answers, which may rise while they are learnt, a run would lose its patience; by
    the loss of pairs alone `checkpoint.best` would pass over what ORPO, CPO and RPO minimise beside it.
    """
    one = evaluator()
    assert one.mean({"new": 4.0, "old": 2.0}) == 3.0
    one._pairs, one._judged = pairs(PreferenceLoss.orpo, text_weight=0.25), judged()
    # 1.5 of pairs and their chosen answers, a quarter of the replayed source; the probe is not learnt
    assert one.mean({"new": 4.0, "old": 2.0, "maths": 9.0}) == 2.0
    assert one.mean({"new": 4.0}) == 1.5


def test_what_is_logged_of_pairs_ranks_nothing_before_the_first_step():
    record = pairs(PreferenceLoss.dpo).logged(judged(), is_begun=True)
    assert record["eval_accuracy/new"] == 0.5 and record["eval_margin/new"] == 0.5
    assert record["eval_accuracy_low/new"] == pytest.approx(0.40383, abs=1e-5)
    assert record["eval_accuracy_longer/new"] == 0.75 and "eval_accuracy_shorter/new" not in record
    before = {"eval_pair_loss/new", "eval_reward_chosen/new", "eval_reward_rejected/new", "eval_margin/new"}
    assert set(pairs(PreferenceLoss.dpo).logged(judged(), is_begun=False)) == before
    assert set(pairs(PreferenceLoss.cpo).logged(judged(), is_begun=False)) > before
    assert told(judged()["new"]) == (
        "50.0% of 100 ranked right (95 %: 40.4% to 59.6%), by +0.5 in the mean; 75.0% of 40 whose chosen answer is "
        "longer."
    )
