"""A head that reads from the U-Net what stands where, only while the base is trained.

A denoiser has to work out from noise and words which subject stands where before it can paint any;
from the error of its velocity alone it learns that slowly. So a linear map of its features in the
middle is taught at the same time to name the class and the body's colour at every place, which the
renderer knows. Features that are aligned with a meaning speed up the training of diffusion models
(REPA, arXiv 2410.06940, with those of another network; here the truth itself is at hand). The head
is not part of the model that ships.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from ..world import KINDS, Drawing

COLOUR_WEIGHT = 2.0
"""Of the squared error of colours in [-1, 1] beside the cross-entropy of classes in nats."""


class Looks:
    """Class and body colour of every subject of some drawings, to be looked up by number.

    Args:
        drawings: D of them.
        most: subjects of a scene.

    Attributes:
        kinds: (D, most), number of the class in `KINDS`; 0 where there is none, as nothing is
            covered there.
        bodies: (D, most, 3), RGB in [-1, 1].
    """

    def __init__(self, drawings: Sequence[Drawing], most: int):
        self.kinds = torch.zeros(len(drawings), most, dtype=torch.long)
        self.bodies = torch.zeros(len(drawings), most, 3)
        for i, drawing in enumerate(drawings):
            own = drawing.subjects
            self.kinds[i, : len(own)] = torch.tensor([KINDS.index(one.kind) for one in own])
            colours = torch.tensor([one.body for one in own], dtype=torch.float)
            self.bodies[i, : len(own)] = colours / 127.5 - 1

    def at(
        self, chosen: Tensor, masks: Float[Tensor, "B M h w"]
    ) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B 3 h w"]]:
        """Share of each cell that each class covers, the last one being nothing; and the colour
        there times the share that any subject covers."""
        kinds, bodies = self.kinds[chosen].to(masks.device), self.bodies[chosen].to(masks.device)
        masks = masks / masks.sum(1, keepdim=True).clamp(min=1)
        shares = torch.einsum("bmk,bmhw->bkhw", F.one_hot(kinds, len(KINDS)).float(), masks)
        nothing = 1 - masks.sum(1, keepdim=True)
        return torch.cat([shares, nothing], 1), torch.einsum("bmc,bmhw->bchw", bodies, masks)


class LayoutHead(nn.Module):
    """Classes and colours from what the U-Net's lowest upward block gives.

    Args:
        unet: whose features are kept at every call, until they are read.
        looks: of the drawings that it learns.
    """

    def __init__(self, unet: UNet2DConditionModel, looks: Looks):
        super().__init__()
        self.looks = looks
        channels = unet.config["block_out_channels"][-1]
        self.read = nn.Conv2d(channels, len(KINDS) + 1 + 3, 1)
        self._features: Tensor | None = None
        self._hook = unet.up_blocks[0].register_forward_hook(self._keep)

    def remove(self) -> None:
        """Leave the U-Net as it was."""
        self._hook.remove()

    def _keep(self, _block: nn.Module, _args: tuple, features: Tensor) -> None:
        self._features = features

    def loss(
        self, classes: Float[Tensor, "B K h w"], colours: Float[Tensor, "B 3 h w"]
    ) -> Float[Tensor, ""]:
        """How badly the last call's features tell them (shares and colours as of `Looks.at`).

        A cell weighs as much as subjects cover of it, and all cells of a scene without any
        together as much as those: most of a picture is background.
        """
        assert self._features is not None
        read = self.read(self._features.float())
        self._features = None
        side = read.shape[-1]
        classes, colours = (
            F.adaptive_avg_pool2d(one, side) for one in (classes, colours)
        )  # fmt: skip
        told, painted = read.split([len(KINDS) + 1, 3], dim=1)
        entropy = -(classes * told.log_softmax(1)).sum(1)
        covered = 1 - classes[:, -1]
        weight = covered / covered.mean() + (1 - covered) / (1 - covered).mean()
        off = (painted * covered[:, None] - colours).square().mean(1) / covered.mean()
        return (entropy * weight).mean() / 2 + COLOUR_WEIGHT * off.mean()
