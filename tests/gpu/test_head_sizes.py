"""Flash attention is chosen only for heads that its kernels compute on this GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu


def test_heads_that_no_kernel_computes_take_sdpa_and_that_is_said():
    from trainer.config.model import Attention
    from trainer.errors import ModelError
    from trainer.model.attention import Offered, choose_attention, is_flash_installed

    if not is_flash_installed():
        pytest.skip("no flash attention is installed")
    capability = torch.cuda.get_device_capability()
    usual = choose_attention(Attention.auto, capability, has=Offered(head_dims=(64, 128)))
    assert usual.is_flash
    # 1,024 is more than any of them computes.
    wide = choose_attention(Attention.auto, capability, has=Offered(head_dims=(64, 1024)))
    assert wide.name == "sdpa" and "does not compute heads of 1024 here" in wide.reason
    with pytest.raises(ModelError, match=r"heads of 1024.*model\.attention=auto"):
        choose_attention(Attention(usual.name), capability, has=Offered(head_dims=(1024,)))
