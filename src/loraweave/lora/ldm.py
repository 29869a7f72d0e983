"""The names that the original Stable Diffusion code gives to the modules of diffusers' UNet.

There the blocks are numbered through: `input_blocks.N` counts the convolution at the start, then
the layers and the downsampler of every block; `output_blocks.N` counts layers only, and the
upsampler is the last part of its block's last layer. Within a layer 0 is the resnet and 1 the
transformer.
"""

import re
from collections.abc import Iterable

_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
_PART = re.compile(
    r"^(?:(?P<way>down|up)_blocks\.(?P<block>\d+)|mid_block)"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)$"
)


def ldm_names(paths: Iterable[str]) -> dict[str, str]:
    """Module path in diffusers -> the same module's path in the original code.

    Args:
        paths: all linear and convolution modules of one UNet.
    """
    paths = list(paths)
    parts = {path: match for path in paths if (match := _PART.match(path))}
    first = [m for m in parts.values() if m["way"] == "down" and m["block"] == "0"]
    layers = 1 + max((int(m["layer"]) for m in first if m["kind"] == "resnets"), default=0)
    attended = {
        m["block"] for m in parts.values() if m["way"] == "up" and m["kind"] == "attentions"
    }
    names = {path: _ENDS[path] for path in paths if path in _ENDS}
    for path, match in parts.items():
        name = _inside(match, layers, attended)
        if name is not None:
            names[path] = name
    return names


def _inside(match: re.Match[str], layers: int, attended: set[str]) -> str | None:
    """The name of a module inside a block with this many layers."""
    kind, layer, rest = match["kind"], int(match["layer"]), match["rest"]
    if kind == "resnets":
        rest = _RESNET.get(rest)
    if rest is None:
        return None
    place = 1 if kind == "attentions" else 0
    if match["way"] is None:
        return f"middle_block.{place + 2 * layer}.{rest}"
    block = int(match["block"])
    if match["way"] == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op"
        return f"input_blocks.{1 + block * (layers + 1) + layer}.{place}.{rest}"
    if kind == "upsamplers":
        place = 2 if match["block"] in attended else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{place}.{rest}"
    return f"output_blocks.{block * (layers + 1) + layer}.{place}.{rest}"
