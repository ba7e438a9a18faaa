"""The proof that the gradient of the loss is the model's own, on layers that are right forward and wrong backward."""

import pytest
import torch

from tests.unit.evaluate.test_agreement import after_the_head, policy_of
from trainer.config.model import Remat
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.agreement import check_head
from trainer.evaluate.proofs.gradient import check_gradient, gradient_work
from trainer.model.own_code import OwnCode
from trainer.model.remat import apply_remat

DTYPES = [torch.float32, torch.bfloat16]


class Times(torch.autograd.Function):
    """The same tensor, and a gradient times a number."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * ctx.factor, None


def proved(change=None, model_type="llama", dtype=torch.float32, recomputes=False, **options):
    """Check a model in which `change` puts kernels after its own code was noted."""
    policy, config = policy_of(model_type, dtype, **options)
    own_code = OwnCode(policy.module.lm)
    if change is not None:
        change(policy.module.lm)
    if recomputes:
        apply_remat(policy.module.lm, -1, Remat.first)
    return check_gradient(policy, own_code, config, 256), policy, config


def patched(module, function):
    """Give a module another forward, as a kernel does: a function of its own output."""
    inner = module.forward
    module.forward = lambda *args, **inputs: function(inner(*args, **inputs))


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_plain_models_have_their_own_gradient(model_type, dtype, recomputes):
    found, policy, _ = proved(None, model_type, dtype, recomputes)
    assert found <= (1e-5 if dtype is torch.float32 else 2.0**-5)
    assert all(p.grad is None for p in policy.module.parameters()) and policy.module.training


class WritesOver(torch.autograd.Function):
    """The same tensor; the gradient is written over the one that is given, as Liger's norms do on a GPU."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        found = grads[0].clone()
        grads[0].zero_()
        return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_may_use_the_memory_of_the_gradient_that_it_is_given(dtype):
    found, _, _ = proved(lambda model: patched(model.model.norm, WritesOver.apply), dtype=dtype)
    assert found <= (1e-5 if dtype is torch.float32 else 2.0**-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [0, 1])
def test_a_kernel_that_is_wrong_backward_alone_stops_the_run_and_its_layer_is_named(dtype, number):
    """The activation's gradient halves on its way through one MLP; logits and loss are right."""

    def change(model):
        patched(model.model.layers[number].mlp, lambda output: Times.apply(output, 0.5))

    with pytest.raises(SelfCheckError, match=rf"in layer model\.layers\.{number} .*model\.kernels=none"):
        proved(change, dtype=dtype, layer_types=["full_attention"] * 2)
    policy, config = policy_of(dtype=dtype)
    change(policy.module.lm)
    assert check_head(policy, config, 256).logits <= 2.0**-9


def test_the_kind_of_the_layer_is_told():
    def change(model):
        patched(model.model.layers[0].mlp, lambda output: Times.apply(output, 0.5))

    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 40}
    with pytest.raises(SelfCheckError, match=r"layers\.0 of the kind sliding_attention it differs"):
        proved(change, "qwen3", use_sliding_window=True, **kinds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_that_gives_its_own_parameter_a_wrong_gradient_stops_the_run(dtype):
    def change(model):
        norm = model.model.layers[0].input_layernorm
        weight = norm.weight

        def forward(hidden):
            normed = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=norm.variance_epsilon)
            return normed * Times.apply(weight, 2.0)

        norm.forward = forward

    with pytest.raises(SelfCheckError, match=r"of .*layers\.0\.input_layernorm\.weight it differs by"):
        proved(change, dtype=dtype)


def test_a_layer_that_recomputes_something_else_stops_the_run():
    def change(model):
        mlp = model.model.layers[1].mlp
        patched(mlp.act_fn, lambda output: output * (1.0 if torch._C._current_graph_task_id() == -1 else 1.5))

    proved(change)
    with pytest.raises(SelfCheckError, match=r"layers\.1 .*model\.checkpoint_layers=0"):
        proved(change, recomputes=True)


def test_a_head_that_hands_back_another_gradient_stops_the_run():
    policy, config = policy_of(later=after_the_head(lambda logits: Times.apply(logits, 2.0)))
    with pytest.raises(SelfCheckError, match="in the output layer and the loss it differs"):
        check_gradient(policy, OwnCode(policy.module.lm), config, 256)


def test_families_that_scale_around_their_output_layer_or_in_place_have_their_own_gradient():
    assert proved(None, "granite", logits_scaling=8.0, embedding_multiplier=12.0)[0] <= 1e-5
    assert proved(None, "ctrl", n_embd=32, dff=64, n_layer=2, n_head=4, n_positions=512)[0] <= 1e-5


def test_a_layer_that_drops_out_by_itself_is_compared_without_recomputing_it(caplog):
    shape = {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.5, "max_position_embeddings": 512}
    found, _, _ = proved(None, "opt", recomputes=True, **shape)
    assert found <= 1e-5 and "drop out at random" in caplog.text


def test_own_code_takes_kernels_out_and_puts_them_back():
    policy, _ = policy_of()
    model = policy.module.lm
    own_code, file = OwnCode(model), __import__(type(model).__module__, fromlist=["x"])
    mlp, rotary = model.model.layers[0].mlp, file.apply_rotary_pos_emb
    kernel, function = (lambda x: x), (lambda *args: args[:2])
    mlp.forward, file.apply_rotary_pos_emb = kernel, function
    try:
        with own_code.restored() as count:
            assert count == 2 and "forward" not in vars(mlp) and file.apply_rotary_pos_emb is rotary
        assert mlp.forward is kernel and file.apply_rotary_pos_emb is function
    finally:
        file.apply_rotary_pos_emb = rotary


def test_the_gradient_of_a_model_that_is_right_takes_one_pass_of_each_side():
    policy, config = policy_of("llama")
    works = []
    check_gradient(policy, OwnCode(policy.module.lm), config, 512, works.append)
    assert works == [3 * 64, 3 * 64] and sum(works) == gradient_work(512)
