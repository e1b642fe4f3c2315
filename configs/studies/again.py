"""The learned table a second time, for an A/A comparison: the same scheme, with other random numbers at its start."""

import torch

from vitpos.positions.learned import Learned


class Again(Learned):
    """The scheme ``learned``, drawn one number later."""

    def reset_parameters(self) -> None:
        """Draws the table anew."""
        torch.rand(1)
        super().reset_parameters()
