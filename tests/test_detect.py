"""The segmenters for real bases, as tiny models with random weights: what goes in and comes out."""

import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizerFast,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SwinConfig,
    ViTImageProcessor,
)

from loraweave.detect import get_segmenter, grounded_sam
from loraweave.detect.grounded_sam import apart
from loraweave.errors import ModelNotFound
from tiny import tiny_tokenizer

SIZE = (80, 60)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = CLIPSegConfig(
        text_config={
            **SMALL, "vocab_size": len(tokenizer), "num_hidden_layers": 2,
            "max_position_embeddings": 77, **ids,
        },
        vision_config={**SMALL, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        projection_dim=16, reduce_dim=8, extract_layers=[0, 1, 2], decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clipseg")
    torch.manual_seed(0)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    image_processor = ViTImageProcessor(size={"height": 32, "width": 32})
    CLIPSegProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def grounded(tmp_path_factory):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", ".", "?"]
    folder = tmp_path_factory.mktemp("grounded")
    torch.manual_seed(0)
    detector = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=128, embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 2], window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config={
            **SMALL, "hidden_size": 32, "model_type": "bert", "vocab_size": len(words),
            "num_hidden_layers": 1, "max_position_embeddings": 64,
        },
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=8,
    )  # fmt: skip
    GroundingDinoForObjectDetection(detector).save_pretrained(folder / "dino")
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
    GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder / "dino")
    hiera = Sam2HieraDetConfig(
        hidden_size=16, blocks_per_stage=[1] * 4, embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 2, 2], image_size=[128, 128],
        window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    sam = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=hiera, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=32,
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(
            hidden_size=32, image_size=128, patch_size=16
        ),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2,
            iou_head_hidden_dim=32,
        ),
    )  # fmt: skip
    Sam2Model(sam).save_pretrained(folder / "sam")
    return folder / "dino", folder / "sam"


def picture():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (SIZE[1], SIZE[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def assert_masks(masks, shape):
    assert masks
    assert all(mask.shape == shape and mask.dtype == bool and mask.any() for mask in masks)
    middles = [mask.nonzero()[1].mean() for mask in masks]
    assert middles == sorted(middles)


def test_clipseg_finds_masks_from_left_to_right(clipseg, monkeypatch):
    monkeypatch.setattr("loraweave.detect.clipseg.LEAST", 0.0)
    monkeypatch.setattr("loraweave.detect.clipseg.THRESHOLD", 0.5)
    segmenter = get_segmenter("clipseg", clipseg)
    assert_masks(segmenter.find(picture(), "cat"), (32, 32))
    monkeypatch.setattr("loraweave.detect.clipseg.THRESHOLD", 1.0)
    assert segmenter.find(picture(), "cat") == []


def test_grounded_sam_finds_masks_of_the_pictures_size(grounded, monkeypatch):
    monkeypatch.setattr(grounded_sam, "BOX_THRESHOLD", 0.0)
    monkeypatch.setattr(grounded_sam, "TEXT_THRESHOLD", 0.0)
    segmenter = get_segmenter("grounded_sam", *grounded)
    assert_masks(segmenter.find(picture(), "Cat"), (SIZE[1], SIZE[0]))
    monkeypatch.setattr(grounded_sam, "BOX_THRESHOLD", 1.0)
    assert segmenter.find(picture(), "cat") == []


def test_boxes_of_one_instance_are_one():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10]])
    kept = apart(boxes, torch.tensor([0.5, 0.9, 0.4]))
    assert kept.tolist() == [[1, 0, 10, 10], [20, 0, 30, 10]]


@pytest.mark.parametrize(("name", "count"), [("clipseg", 1), ("grounded_sam", 2)])
def test_folders_without_models(tmp_path, name, count):
    with pytest.raises(ModelNotFound, match=r"no .*model"):
        get_segmenter(name, *[tmp_path] * count)
