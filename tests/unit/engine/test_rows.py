"""Models that carry something along a row: each document in a row of its own is what it is alone, and so trained."""

import inspect
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.multimodal import DELTA
from trainer.data.pack.collate import collate
from trainer.data.types import Pack
from trainer.dist.mesh import alone
from trainer.engine.engine import undivided
from trainer.engine.policy import Policy
from trainer.errors import ModelError, SelfCheckError
from trainer.evaluate.proofs.agreement import check_head, check_rows
from trainer.evaluate.proofs.gradient import check_gradient
from trainer.evaluate.proofs.isolation import check_isolation
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.greedy import Prompt, continue_greedily
from trainer.model.carry import ALIBI, STATEFUL, _may_hold, carried_by, takes_no_pairs
from trainer.model.causal import CausalLM
from trainer.model.head.head import install_loss_head
from trainer.model.own_code import OwnCode

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
CARRYING = {
    "qwen3_next": {**EXPERTS, **DELTA, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": DELTA,
    "granitemoehybrid": {
        **MAMBA,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"],
        "logits_scaling": 8.0,
    },
    "nemotron_h": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "mlp", "attention"],
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16, "expand": 2},
    "mamba": {"state_size": 4, "expand": 2, "time_step_rank": 4},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}
PLAIN = {"llama": {}, "mistral": {"sliding_window": 12}, "bloom": {}}
LENGTHS = [[9, 24, 17], [30, 8]]
"""Of two packs; the second is shorter, and no row of either is as wide as the other's."""
SEQ_LEN = 64


def policy_of(model_type, in_rows, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **{**CARRYING, **PLAIN}[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # a wider start than 0.02, so that nothing is drowned in rounding
                parameter.normal_(0, 1 / math.sqrt(parameter.shape[-1]))
    install_loss_head(model, 50)
    return Policy(undivided(CausalLM(model)), alone(torch.device("cpu")), False, in_rows)


def packs():
    draw = np.random.default_rng(0)
    return [
        Pack(draw.integers(1, 64, sum(lengths)), draw.random(sum(lengths)) < 0.7, lengths)
        for lengths in LENGTHS
    ]


def plain_loss(lm, micro):
    """Return the loss by transformers, a document at a time."""
    total = torch.zeros(())
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            ids, labels = (torch.from_numpy(found[row, part]) for found in (micro.tokens_BT, micro.labels_BT))
            logits = lm(input_ids=ids[None], use_cache=False).logits[0]
            total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            start += length
    return total


def norm_of(policy, loss):
    policy.module.zero_grad()
    loss.backward()
    return math.sqrt(
        sum(float(p.grad.square().sum()) for p in policy.module.parameters() if p.grad is not None)
    )


@pytest.mark.parametrize("is_one_call", [False, True])
@pytest.mark.parametrize("model_type", [*CARRYING, *PLAIN])
def test_loss_and_gradient_are_those_of_documents_alone(model_type, is_one_call):
    policy = policy_of(model_type, in_rows=True)
    micro = collate(packs(), [0, 0], SEQ_LEN, 0, is_one_call)
    found, expected = policy.nll(micro).loss_sum, plain_loss(policy.module.lm, micro)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert norm_of(policy, found) == pytest.approx(norm_of(policy, expected), rel=1e-4)


def test_rows_and_a_row_of_masked_documents_are_one_loss_where_both_are_exact():
    policy = policy_of("llama", in_rows=True)
    packed = Policy(policy.engine, policy.mesh, False)
    micro = collate(packs(), [0, 0], SEQ_LEN, 0)
    rows, masked = policy.nll(micro), packed.nll(micro)
    np.testing.assert_allclose(rows.nll_N.numpy(), masked.nll_N.numpy(), rtol=1e-5, atol=1e-6)
    assert norm_of(policy, rows.loss_sum) == pytest.approx(norm_of(policy, masked.loss_sum), rel=1e-5)


@pytest.mark.parametrize("model_type", [*CARRYING, *PLAIN])
def test_what_carries_something_along_a_row_is_known_before_it_is_loaded_and_proved(model_type):
    policy = policy_of(model_type, in_rows=True)
    config = policy.module.lm.config
    assert (carried_by(config) is not None) == (model_type in CARRYING)
    assert takes_no_pairs(config) == (model_type == "bloom")
    check_head(policy, config, SEQ_LEN)
    assert check_isolation(policy, 64, SEQ_LEN).moved == 0
    assert check_rows(policy, config, SEQ_LEN) < 1e-5
    assert check_gradient(policy, OwnCode(policy.module.lm), config, SEQ_LEN) < 1e-4


def test_a_class_without_a_name_in_its_file_does_not_have_it():
    """Of all that transformers has a causal class for; most need not be imported to know."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    known = [kind for kind in NAMES if not _may_hold(SimpleNamespace(model_type=kind), STATEFUL)]
    assert {"llama", "qwen3", "mistral"} <= {*known} and not {"mamba", "qwen3_next", "jamba"} & {*known}
    assert len(known) > len(NAMES) // 2


@pytest.mark.slow
def test_classes_that_were_read_as_text_are_as_they_were_read():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CLASSES

    for kind in CONFIG_MAPPING:
        config = CONFIG_MAPPING[kind]
        if config not in CLASSES.keys():  # noqa: SIM118
            continue
        model_type = SimpleNamespace(model_type=config.model_type or kind)
        found = CLASSES[config]
        assert not getattr(found, STATEFUL, False) or _may_hold(model_type, STATEFUL), kind
        assert not hasattr(sys.modules[found.__module__], ALIBI) or _may_hold(model_type, ALIBI), kind


@pytest.mark.parametrize("model_type", CARRYING)
def test_answers_with_a_cache_are_those_without(model_type):
    """Prompts of two lengths, so that one is padded on the left: a state that is not kept, or holds padding, shows."""
    policy = policy_of(model_type, in_rows=True)
    lm = policy.module.lm.eval()
    prompts = [[5, 9, 17, 3, 8, 21], [33, 7, 12]]
    model = TaskModel(policy, lm.config, 0, frozenset(), 64, 64)
    taken = inspect.signature(lm.base_model.forward).parameters.keys()
    if not taken & {"past_key_values", "cache"}:  # Mamba of transformers 5.17
        with pytest.raises(ModelError, match="Generate with the exported model"):
            continue_greedily(model, [Prompt(ids, 5, ()) for ids in prompts], lambda ids: "")
        return
    answers = continue_greedily(model, [Prompt(ids, 5, ()) for ids in prompts], lambda ids: "")
    for ids, answer in zip(prompts, answers, strict=True):
        whole = list(ids)
        for _ in range(5):
            logits = lm(input_ids=torch.tensor([whole]), use_cache=False).logits[0, -1]
            whole.append(int(logits.argmax()))
        assert answer == whole[len(ids) :]


@pytest.mark.parametrize("model_type", CARRYING)
def test_packed_in_one_row_they_are_refused_with_the_way_that_works(model_type):
    policy = policy_of(model_type, in_rows=False)
    with pytest.raises(SelfCheckError, match=r"Set data\.packing=none"):
        check_isolation(policy, 64, SEQ_LEN)
