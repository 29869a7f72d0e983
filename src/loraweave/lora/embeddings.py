"""Textual-inversion embeddings inside a LoRA file or alone: which tensors they are, and for which
token.

    diffusers      <s1>                                  also beside a LoRA of cloneofsimo's trainer
    bundled        bundle_emb.NAME.string_to_param.*     A1111's way to put one into a LoRA file
    A1111 alone    string_to_param, name                 pickles; read as the bundled form
    bare           emb_params                            the token is the file's name
    several        clip_l                                the tokens are <s0>, <s1>, ... one a row
    ED-LoRA        new_concept_embedding.<c1>            one row, or one for each layer
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from loraweave.errors import UnsupportedLoraFormat
from loraweave.lora.updates import finite

BUNDLED = "bundle_emb.{}.string_to_param.*"
LAYERED, FORMER_LAYERED = "new_concept_embedding.", "new_concept_token."

_NAMES = re.compile(
    r"""^(?:
        (?P<angle><[^<>]+>)
      | bundle_emb\.(?P<bundled>.+)\.string_to_param\.\*
      | (?P<bare>emb_params)
      | (?P<several>clip_l|text_encoders_0)
      | new_concept_(?:embedding|token)\.(?P<concept>.+)
    )$""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Found:
    """The embeddings of a file.

    Attributes:
        vectors: token -> (n, D), n text-encoder vectors that stand for the token.
        layered: token -> (X, D), one vector for each of the denoiser's X cross-attention layers in
            the order of a forward pass (ED-LoRA).
        keys: tensor names that they came from.
    """

    vectors: dict[str, Tensor]
    layered: dict[str, Tensor]
    keys: tuple[str, ...]


def is_embedding(key: str, names: Collection[str]) -> bool:
    """Whether a tensor of a file is an embedding, by its name and all names of the file."""
    # diffusers' trainer writes the bare token, whatever it is, as the only name of a file.
    return bool(_NAMES.match(key)) or (len(names) == 1 and "." not in key and ":" not in key)


def find_embeddings(label: str, tensors: Mapping[str, Tensor]) -> Found:
    """All embeddings of a file.

    Args:
        label: the file's name; without its suffix it is the token of a bare embedding.
        tensors: name in the file -> tensor.

    Raises:
        UnsupportedLoraFormat: a wrong shape, values that are not finite, a token twice.
    """
    vectors: dict[str, Tensor] = {}
    layered: dict[str, Tensor] = {}
    keys = []
    for key, tensor in tensors.items():
        if not is_embedding(key, tensors):
            continue
        match = _NAMES.match(key)
        if tensor.ndim not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
            raise UnsupportedLoraFormat(
                f"{label}: {key} has shape {tuple(tensor.shape)}; an embedding is (width,) or "
                "(vectors, width)."
            )
        if not finite(tensor):
            raise UnsupportedLoraFormat(f"{label}: {key} holds values that are not finite numbers.")
        rows = tensor.detach().reshape(-1, tensor.shape[-1])
        keys.append(key)
        kind = layered if match and match["concept"] and len(rows) > 1 else vectors
        for token, own in _tokens(label, key, match, rows):
            if token in vectors or token in layered:
                raise UnsupportedLoraFormat(f"{label} has two embeddings for the token {token}.")
            kind[token] = own
    return Found(vectors, layered, tuple(keys))


def _tokens(
    label: str, key: str, match: re.Match[str] | None, rows: Tensor
) -> list[tuple[str, Tensor]]:
    if match is None:
        return [(key, rows)]
    if match["several"]:
        return [(f"<s{n}>", row[None]) for n, row in enumerate(rows)]
    if match["bare"]:
        return [(label.rpartition(".")[0] or label, rows)]
    return [(match["angle"] or match["bundled"] or match["concept"], rows)]
