"""GroundingDINO for boxes (Liu et al., ECCV 2024), SAM 2 for masks (Ravi et al. 2024).

Any noun, instances told apart; both through transformers, from local folders. SAM 2's own
processor needs torchvision, which this package does not, so its few lines stand here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, Sam2Model

from ..errors import ModelNotFound
from .components import left_to_right
from .pixels import IMAGENET_MEAN, IMAGENET_STD, normalised

BOX_THRESHOLD, TEXT_THRESHOLD = 0.3, 0.25
SAME = 0.7  # intersection over union of two boxes of one instance


class GroundedSam:
    """Finds the instances of a noun.

    Args:
        detector: folder of a GroundingDINO model in the format of transformers.
        segmenter: folder of a SAM 2 model.
        device: where both run.

    Raises:
        ModelNotFound: no such model in a folder.
    """

    def __init__(self, detector: Path, segmenter: Path, device: str = "cpu"):
        given: dict[str, Any] = {"local_files_only": True}
        try:
            self.detector_processor = AutoProcessor.from_pretrained(detector, **given)
            self.detector = AutoModelForZeroShotObjectDetection.from_pretrained(
                detector, use_safetensors=True, **given
            ).to(device)
            masker: Any = Sam2Model.from_pretrained(segmenter, use_safetensors=True, **given)
            self.masker = masker.to(device)
        except (OSError, ValueError) as error:
            raise ModelNotFound(f"no model in {detector} or {segmenter}: {error}") from None
        self.detector.eval()
        self.masker.eval()

    @torch.no_grad()
    def find(self, image: Image.Image, noun: str) -> list[Bool[np.ndarray, "h w"]]:
        """Masks of the instances of a noun at the picture's size, from left to right."""
        image = image.convert("RGB")
        inputs = self.detector_processor(images=image, text=f"{noun.lower()}.", return_tensors="pt")
        inputs = inputs.to(self.detector.device)
        (found,) = self.detector_processor.post_process_grounded_object_detection(
            self.detector(**inputs), inputs["input_ids"], threshold=BOX_THRESHOLD,
            text_threshold=TEXT_THRESHOLD, target_sizes=[image.size[::-1]],
        )  # fmt: skip
        boxes = apart(found["boxes"].cpu(), found["scores"].cpu())
        if not len(boxes):
            return []
        masks = self._masks(image, boxes)
        return left_to_right([mask for mask in masks if mask.any()])

    def _masks(self, image: Image.Image, boxes: torch.Tensor) -> list[Bool[np.ndarray, "h w"]]:
        """SAM 2's mask for each box (n, 4) in pixels, at the picture's size."""
        side = self.masker.config.prompt_encoder_config.image_size
        resized = image.resize((side, side), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized, dtype=np.float32) / 255)
        pixels = normalised(pixels.permute(2, 0, 1)[None], IMAGENET_MEAN, IMAGENET_STD)
        scale = torch.tensor([side / image.width, side / image.height] * 2)
        device = self.masker.device
        out = self.masker(
            pixel_values=pixels.to(device), input_boxes=(boxes * scale)[None].to(device),
            multimask_output=False,
        )  # fmt: skip
        scores = out.pred_masks[0].float().cpu()  # (n, 1, h, w)
        whole = F.interpolate(scores, image.size[::-1], mode="bilinear", align_corners=False)
        return [mask[0].numpy() > 0 for mask in whole]


def apart(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The boxes (n, 4) without those that another of a higher score covers (greedy NMS)."""
    kept: list[int] = []
    for n in scores.argsort(descending=True).tolist():
        if all(_overlap(boxes[n], boxes[k]) < SAME for k in kept):
            kept.append(n)
    return boxes[kept]


def _overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    both = float((high - low).clamp(min=0).prod())
    areas = [float((x[2:] - x[:2]).prod()) for x in (a, b)]
    return both / max(sum(areas) - both, 1e-9)
