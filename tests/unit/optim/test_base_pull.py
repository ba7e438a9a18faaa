"""The decay towards the weights that training began with, against numbers worked out by hand and plain float64."""

import pytest
import torch

from trainer.engine.update import pull_after_steps, take_step
from trainer.optim import base_pull
from trainer.optim.base_pull import BasePull


def pulled(master: torch.Tensor, decay: float, **groups: float) -> tuple[torch.optim.Optimizer, BasePull]:
    optimizer = torch.optim.AdamW([master], weight_decay=0.0, betas=(0.0, 0.0), eps=1e-30, **groups)
    pull = BasePull([master], torch.bfloat16, decay)
    pull_after_steps(optimizer, pull)
    return optimizer, pull


def test_a_step_goes_its_way_and_then_a_share_of_the_whole_way_back():
    """Adam with betas 0 moves each weight by lr against the sign of its gradient: 1 -> 0.5 -> 0.5 + 0.25 x 0.5."""
    master = torch.nn.Parameter(torch.tensor([1.0, 2.0, -4.0]))
    optimizer, pull = pulled(master, decay=0.5, lr=0.5)
    master.grad = torch.tensor([3.0, -0.1, 0.0])
    optimizer.step()
    assert master.tolist() == [0.5 + 0.125, 2.5 - 0.125, -4.0]
    optimizer.step()  # from there half a step on, and a quarter of the way from 1 and 2 back
    assert master.tolist() == [0.125 + 0.25 * 0.875, 2.875 - 0.25 * 0.875, -4.0]
    assert pull.num_bytes == 6  # bf16 holds the start


def test_a_start_that_the_dtype_does_not_hold_is_kept_as_it_is():
    master = torch.nn.Parameter(torch.tensor([1.0, 1.0 + 2**-12]))
    optimizer, pull = pulled(master, decay=1.0, lr=0.5)
    with torch.no_grad():
        master.add_(1.0)
    master.grad = torch.zeros(2)
    optimizer.step()
    assert master.tolist() == [1.5, 1.5 + 2**-12]
    assert pull.num_bytes == 8


def test_weights_that_did_not_move_stay_to_the_bit():
    """A product with 1 - share and a sum would round some of them, in every step anew."""
    torch.manual_seed(0)
    master = torch.nn.Parameter(torch.randn(4096))
    before = master.detach().clone()
    optimizer, _ = pulled(master, decay=0.37, lr=0.1)
    master.grad = torch.zeros(4096)
    for _ in range(5):
        optimizer.step()
    assert torch.equal(master, before)


def test_all_of_a_tensor_is_pulled_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(base_pull, "CHUNK", 3)
    master = torch.nn.Parameter(torch.zeros(2, 4))
    optimizer, _ = pulled(master, decay=1.0, lr=0.25)
    with torch.no_grad():
        master.copy_(torch.arange(8.0).view(2, 4))
    master.grad = torch.zeros(2, 4)
    optimizer.step()
    assert master.flatten().tolist() == [0.75 * value for value in range(8)]


def test_the_master_is_pulled_and_then_rounded_for_the_model():
    """The pull of 0.1 x 2^-8 is lost in bf16, which has 2^-7 beside 1, and adds up in the master."""
    master = torch.nn.Parameter(torch.ones(1))
    optimizer, _ = pulled(master, decay=1.0, lr=0.1)
    with torch.no_grad():
        master.add_(2**-7)
    rounded = torch.empty(1, dtype=torch.bfloat16)
    seen = []
    for _ in range(20):
        take_step(optimizer, optimizer.param_groups[0], torch.zeros(1), torch.ones(1), rounded)
        seen.append(rounded.item())
    assert seen[0] == 1 + 2**-7
    assert seen[-1] == 1.0
    assert master.item() - 1 == pytest.approx(2**-7 * 0.9**20, rel=1e-4)


def test_each_group_is_pulled_by_its_own_learning_rate():
    """LoRA+ trains B faster; its decay goes with its rate, as the weight decay of AdamW does."""
    slow, fast = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.AdamW(
        [{"params": [slow], "lr": 0.1}, {"params": [fast], "lr": 0.4}], weight_decay=0
    )
    pull_after_steps(optimizer, BasePull([slow, fast], torch.float32, 1.0))
    for one in (slow, fast):
        one.data.fill_(1.0)
        one.grad = torch.zeros(1)
    optimizer.step()
    assert (slow.item(), fast.item()) == pytest.approx((0.9, 0.6))


def test_nothing_is_pulled_once_it_is_stopped():
    master = torch.nn.Parameter(torch.zeros(3))
    optimizer, pull = pulled(master, decay=1.0, lr=0.5)
    with torch.no_grad():
        master.add_(1.0)
    master.grad = torch.zeros(3)
    pull.stop()
    optimizer.step()
    assert master.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("every", [5, 20])
def test_pulls_every_so_many_steps_leave_a_run_where_the_decay_does(every):
    """On a bowl around 1 from a base at 0, in float64: both keep the same share of what is learnt, by as many steps.

    Of pulls, what was learnt is looked at in the middle between two: before one there is more, behind it less.
    """
    lr, share, num_steps = 1e-3, 0.02, 6000

    def bowl(pulls_at_once: bool) -> float:
        now, seen = 0.0, []
        for step in range(num_steps):
            now -= lr * (now - 1.0)
            if not pulls_at_once:
                now -= share * now
            elif step % every == every // 2:
                now *= (1 - share) ** every
            seen.append(now)
        return sum(seen[-every:]) / every

    # Where both rest: lr (1 - w) (1 - share) = share w.
    assert bowl(False) == pytest.approx(lr * (1 - share) / (share + lr * (1 - share)), rel=1e-9)
    assert bowl(True) == pytest.approx(bowl(False), rel=0.03)
