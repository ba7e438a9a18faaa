"""What an export says of how far its logits are from the trained model's."""

import torch

from trainer.command.export import Compared, distance


def test_a_distance_beyond_rounding_alone_says_what_is_allowed_and_that_it_is_verified():
    """A failure: 4.7e-03 where rounding makes 4.2e-03, and no word of whether that is well."""
    found = Compared(4.7e-3, "the trained model's logits", 4.2e-3, torch.zeros(1, 1))
    said = distance(found, "the folder's in float32")
    assert said == (
        "The trained model's logits are 4.7e-03 of their spread from the folder's in float32: verified, as up to "
        "8.4e-03 is allowed, twice the 4.2e-03 that rounding alone makes."
    )
    worse = Compared(1.0e-2, "the trained model's logits", 4.2e-3, torch.zeros(1, 1))
    assert "not verified: up to 8.4e-03 is allowed" in distance(worse, "the folder's in float32")
