"""From a scene's conditions to what the denoiser adds: adapters, pictures, weights by region."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from .backbone.conditions import adapter_config, check_fits, load_adapter, read_picture
from .condition import Condition, check_concepts, made_conditions, weighed_concepts
from .denoise.composition import Composition
from .denoise.conditions import Conditions, Followed, weighted
from .errors import ModelNotFound, RegionError
from .layout.regions import joined, region_masks
from .scene import SHIPPED

AT_HAND = Path("given by a program")
"""Stands for the file of a picture that has none."""


class Given(NamedTuple):
    """A condition, and its picture if that is no file."""

    condition: Condition
    picture: Image.Image | None = None


def given_conditions(conditions: Sequence[Any]) -> tuple[list[Condition], list[Given]]:
    """What a program gives: conditions with files, and those whose pictures are at hand.

    Args:
        conditions: `Condition`s, or dicts of their fields in which `image` may be a PIL picture.

    Raises:
        SceneError: something is missing, unknown or out of range.
    """
    files, at_hand = [], []
    for one in conditions:
        picture = one.get("image") if isinstance(one, Mapping) else None
        if isinstance(picture, Image.Image):
            (made,) = made_conditions([{**one, "image": AT_HAND}])
            at_hand.append(Given(made, picture))
        else:
            files += made_conditions([one])
    return files, at_hand


def check_conditions(
    conditions: Sequence[Condition], concepts: Sequence[str], regions: Mapping[str, Any]
) -> None:
    """Raise SceneError for a weight inside a region that there is not.

    Args:
        conditions: of the scene and those at hand.
        concepts: names.
        regions: all that were given, by concept.
    """
    check_concepts(conditions, concepts)
    for name in weighed_concepts(conditions):
        if name not in regions:
            raise RegionError(
                f"a condition has a weight inside the region of {name!r}, which has no region; "
                f"give one, for example --region {name}=0,0,0.5,1 (left, top, right, bottom)"
            )


def prepare(
    composed: Composition, at_hand: Sequence[Given] = (), allow_pickle: bool = False
) -> tuple[Conditions, list[dict[str, str]]]:
    """The weighted features of every condition, and what a record says about each.

    Args:
        composed: a scene on a backbone.
        at_hand: conditions that the scene does not have.
        allow_pickle: read adapters that are pickles too.

    Raises:
        ModelNotFound: an adapter that is not there, or is none.
        BaseModelMismatch: one of another base.
        SceneError: a picture of another size, or one that cannot be read.
    """
    backbone, followed, records = composed.backbone, [], []
    size = backbone.latent_shape(composed.width, composed.height)[-2:]
    # At least single precision: it is done once, so that costs nothing.
    dtype = torch.promote_types(backbone.dtype, torch.float32)
    for condition, picture in [*map(Given, composed.scene.conditions), *at_hand]:
        folder = adapter_folder(condition.adapter)
        config = adapter_config(folder)
        check_fits(condition.adapter, config, backbone.unet.config, backbone.pipe.vae_scale_factor)
        image, image_sha256 = read_picture(
            condition.image if picture is None else picture, config["in_channels"],
            (composed.width, composed.height),
        )  # fmt: skip
        adapter, adapter_sha256 = load_adapter(folder, dtype, backbone.device, allow_pickle)
        with torch.no_grad():
            features = adapter(image.to(backbone.device, dtype))
        names = list(condition.regions)
        masks = None
        if names:
            pixels = composed.width, composed.height
            masks = joined(*region_masks(composed.regions, names, size, pixels)).to(features[0])
        levels = weighted(features, condition.weight, list(condition.regions.values()), masks)
        followed.append(Followed(tuple(f.to(backbone.dtype) for f in levels), condition.until))
        records.append({
            "adapter": str(condition.adapter), "adapter_sha256": adapter_sha256,
            "image": str(condition.image), "image_sha256": image_sha256,
        })  # fmt: skip
    return Conditions(followed), records


def adapter_folder(adapter: Path) -> Path:
    """The folder of an adapter, of one that ships too.

    Raises:
        ModelNotFound: no adapter of that name ships.
    """
    name = str(adapter)
    if not name.startswith(SHIPPED):
        return adapter
    from .miniature import sketch

    if name != f"{SHIPPED}{sketch.NAME}":
        raise ModelNotFound(
            f"no adapter {name!r} ships with the miniature; there is {SHIPPED}{sketch.NAME}, and "
            "any local folder of a T2IAdapter can be given"
        )
    if (found := sketch.adapter_folder()) is None:
        raise ModelNotFound(
            f"the adapter {name} is not in this installation; install the package again"
        )
    return found
