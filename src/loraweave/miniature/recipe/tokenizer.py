"""A CLIP tokenizer for the miniature: byte-level pairs learned from captions.

Every byte is in the vocabulary, so any text can be written, and words that captions never use are
split into several tokens, as rare words are in Stable Diffusion.
"""

import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ..world import FULL_WORLD, caption_drawing, sample_drawing
from ..world.captions import RARE_WORDS

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(corpus_size: int = 20_000, seed: int = 0) -> CLIPTokenizer:
    """Learn a vocabulary in which every word of the captions is one token."""
    captions = [
        caption_drawing(sample_drawing(seed + i, FULL_WORLD), seed + i).text
        for i in range(corpus_size)
    ]
    captions += [" ".join(RARE_WORDS)] * 50
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=20, show_progress=False, end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    learner.train_from_iterator([c.replace(",", " ") for c in captions], trainer)
    return _as_clip(learner)


def _as_clip(learner: Tokenizer) -> CLIPTokenizer:
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    for special in (START, END):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)  # type: ignore[arg-type]
