"""GroundingDINO for boxes (Liu et al., ECCV 2024), SAM 2 for masks (Ravi et al. 2024).

Any noun, instances told apart; both through transformers, from local folders.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    Sam2Model,
    Sam2Processor,
)

from ..errors import ModelNotFound
from .components import left_to_right

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
        given = {"local_files_only": True}
        try:
            self.detector_processor = AutoProcessor.from_pretrained(detector, **given)
            self.detector = AutoModelForZeroShotObjectDetection.from_pretrained(
                detector, use_safetensors=True, **given
            ).to(device)
            self.mask_processor = Sam2Processor.from_pretrained(segmenter, **given)
            self.masker = Sam2Model.from_pretrained(segmenter, use_safetensors=True, **given).to(
                device
            )  # type: ignore[arg-type]
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
        prompts = self.mask_processor(images=image, input_boxes=[boxes.tolist()],
                                      return_tensors="pt")  # fmt: skip
        out = self.masker(**prompts.to(self.masker.device), multimask_output=False)
        (masks,) = self.mask_processor.post_process_masks(
            out.pred_masks.cpu(), prompts["original_sizes"]
        )
        every = [mask.reshape(mask.shape[-2:]).numpy().astype(bool) for mask in masks]
        return left_to_right([mask for mask in every if mask.any()])


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
