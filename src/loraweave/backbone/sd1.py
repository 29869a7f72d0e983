"""Stable Diffusion 1.x behind the small interface that methods see.

Nothing here assumes the number of latent channels, the width or length of the text, or a square
picture: all of it is read from the pipeline's own parts, so the miniature and the public model
run the same code.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import MethodError, SceneError
from ..prompt import PassPrompt, Span
from ..scene import MINIATURE
from .by_layer import TextByLayer, text_by_layer
from .sites import native_size, reading_factor, reading_sites
from .text import emphasised, end_of_text_position, token_positions, tokenized
from .tokens import Vocabulary, extra_tokens

SD15_CROSS_ATTENTION = 768


def base_name(pipe: StableDiffusionPipeline) -> str:
    """What a pipeline's model is called: its folder's name, or `miniature`, which has its judge
    beside it."""
    folder = Path(str(pipe.config.get("_name_or_path") or "unnamed"))
    return MINIATURE if (folder.parent / "judge" / "judge.json").is_file() else folder.name


def models_of(pipe: object) -> dict[str, nn.Module]:
    """The models of a pipeline by name; none of what is no pipeline."""
    parts = getattr(pipe, "components", {})
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


class StableDiffusion1:
    """A `StableDiffusionPipeline`, read but never changed.

    Attributes:
        pipe: the pipeline.
        sites: the cross-attention layers that methods read.
        factor: latent cells a side of one position of the maps at that level.
    """

    def __init__(self, pipe: StableDiffusionPipeline):
        if not isinstance(pipe, StableDiffusionPipeline):
            raise MethodError(
                f"{type(pipe).__name__} is not supported; give a StableDiffusionPipeline (SD 1.x)"
            )
        if pipe.unet.config.get("encoder_hid_dim_type"):
            raise MethodError("the pipeline has an IP-Adapter, which is not supported; unload it")
        self.pipe = pipe
        self.unet, self.text_encoder = pipe.unet, pipe.text_encoder
        self.tokenizer, self.vae = pipe.tokenizer, pipe.vae
        self.sites = reading_sites(self.unet)
        self.factor = reading_factor(self.unet)
        self._words = Vocabulary(self.tokenizer)
        self._by_layer: TextByLayer | None = None

    @property
    def miniature(self) -> bool:
        """Whether this is the small model that ships with the package."""
        return base_name(self.pipe) == MINIATURE

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        return self.pipe._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's floating-point type."""
        return self.unet.dtype

    @property
    def published_scale(self) -> bool:
        """Whether step sizes published for Stable Diffusion 1.x apply as they stand."""
        config = self.unet.config
        return config["cross_attention_dim"] == SD15_CROSS_ATTENTION and config["in_channels"] == 4

    def size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """Width and height in pixels, the native ones where not given.

        Raises:
            SceneError: the autoencoder does not divide them.
        """
        native = native_size(self.unet)
        native = tuple(cells * self.pipe.vae_scale_factor for cells in native)
        chosen = width or native[0], height or native[1]
        for pixels in chosen:
            if pixels % self.pipe.vae_scale_factor or pixels < 4 * self.pipe.vae_scale_factor:
                raise SceneError(
                    f"a size of {chosen[0]}x{chosen[1]} does not fit this model; use multiples of "
                    f"{self.pipe.vae_scale_factor} from {4 * self.pipe.vae_scale_factor} up, "
                    f"for example {native[0]}x{native[1]}"
                )
        return chosen

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(1, C, h, w) of the latents of a picture of this size in pixels."""
        factor = self.pipe.vae_scale_factor
        return 1, self.unet.config["in_channels"], height // factor, width // factor

    def noise(
        self, width: int, height: int, generator: torch.Generator | None
    ) -> Float[Tensor, "1 C h w"]:
        """Standard normal noise, as diffusers draws it: on the generator's own device."""
        return randn_tensor(self.latent_shape(width, height), generator, self.device, self.dtype)

    def map_size(self, latents: Float[Tensor, "B C h w"]) -> tuple[int, int]:
        """Height and width of the attention maps for these latents."""
        h, w = latents.shape[-2:]
        return -(-h // self.factor), -(-w // self.factor)

    @contextmanager
    def tokens(self, embeddings: Mapping[str, Tensor]) -> Iterator[None]:
        """Know some more tokens inside this context, each (n, D) or (X, n, D) vectors.

        With tokens that differ from layer to layer the text states are X times as wide, and every
        cross-attention layer reads its own part of them; see `extra_tokens` and `by_layer`.
        """
        former = self.tokenizer, self._words, self._by_layer
        with ExitStack() as stack:
            words = stack.enter_context(extra_tokens(former[0], self.text_encoder, embeddings))
            if any(words.layered):
                self._by_layer = stack.enter_context(text_by_layer(self.unet))
            self.tokenizer, self._words = words.tokenizer, words
            try:
                yield
            finally:
                self.tokenizer, self._words, self._by_layer = former

    def token_positions(self, text: str, span: Span) -> list[int]:
        """Positions of the tokens of some characters of a text; start of text is 0."""
        return token_positions(self.tokenizer, text, span)

    def chunks(self, text: str) -> int:
        """How many passes of the text encoder a text needs; see `backbone.text`."""
        return len(tokenized(self.tokenizer, text).chunks)

    def end_position(self, text: str) -> int:
        """Position of the last end-of-text token of a text."""
        return end_of_text_position(self.tokenizer, text)

    def encode(
        self, prompts: Sequence[str | PassPrompt], chunks: int | None = None
    ) -> Float[Tensor, "B T D"]:
        """Last hidden states of the texts; adapters act through hooks on the text encoder.

        D is X times the text encoder's width where a token differs from layer to layer.

        Args:
            prompts: plain texts, or prompts with their emphasis.
            chunks: to how many all are padded, with empty texts; as many as the longest needs
                if not given. T is that many times the text encoder's own length.

        Raises:
            SceneError: a text has more tokens than 16 chunks hold, or cannot be weighted.
        """
        whole = [PassPrompt(p, {}, {}) if isinstance(p, str) else p for p in prompts]
        tokens = [tokenized(self.tokenizer, p.text) for p in whole]
        count = chunks or max(len(t.chunks) for t in tokens)
        ids = torch.stack([t.ids(count) for t in tokens]).to(self.device)  # (B, K, T)
        weights = torch.stack([t.weights(p.emphasis, count) for t, p in zip(tokens, whole)])
        states = [self._chunk(ids[:, k], weights[:, k].to(self.device)) for k in range(count)]
        return torch.cat(states, 1).to(self.dtype)

    def _chunk(self, ids: Int[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> Tensor:
        if self._by_layer is None:
            return emphasised(self.text_encoder(ids)[0], weights)
        each = self._words.by_layer(ids)
        return self._by_layer.joined(
            [emphasised(self.text_encoder(own)[0], weights) for own in each]
        )

    def own_text(self, attn: Attention, text: Float[Tensor, "B T D"]) -> Float[Tensor, "B T d"]:
        """What a cross-attention layer reads of the states that the denoiser is given."""
        return text if self._by_layer is None else self._by_layer.own(attn, text)

    def denoise(
        self, latents: Float[Tensor, "B C h w"], t: Tensor, text: Float[Tensor, "B T D"],
        features: Sequence[Float[Tensor, "#B C h w"]] = (),
    ) -> Float[Tensor, "B C h w"]:  # fmt: skip
        """One call of the denoiser.

        Args:
            latents, t, text: as the denoiser takes them.
            features: what its down blocks add, one tensor for each, for all rows or for each; or
                none.
        """
        more: dict[str, Any] = {}
        if features:  # a new list each time: the denoiser empties it
            more["down_intrablock_additional_residuals"] = [
                level.expand(len(latents), -1, -1, -1) for level in features
            ]
        return self.unet(latents, t, encoder_hidden_states=text, return_dict=False, **more)[0]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C h w"], output_type: str = "pil"):
        """Pictures from latents: a list of PIL pictures, an array, or a tensor ("pil", "np", "pt").

        "latent" gives the latents back. What the safety checker finds comes out black, see
        `decode_checked`.
        """
        return self.decode_checked(latents, output_type)[0]

    @torch.no_grad()
    def decode_checked(self, latents: Float[Tensor, "B C h w"], output_type: str = "pil"):
        """`decode`, and per picture whether the base's safety checker blackened it.

        None for those flags if the base has no safety checker, or nothing was decoded.
        """
        if output_type == "latent":
            return latents, None
        scaled = latents / self.vae.config["scaling_factor"]
        decoded = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()
        flagged = None
        if (checker := self.pipe.safety_checker) is not None:
            # A copy, which the checker blackens too, perhaps in less precision.
            looked_at = decoded.to(checker.dtype, copy=True)
            _, flagged = self.pipe.run_safety_checker(looked_at, self.device, checker.dtype)
            decoded[torch.tensor(flagged)] = 0
        # A blackened picture is zeros already, which denormalising would make grey.
        denormalise = [not flag for flag in flagged] if flagged is not None else None
        images = self.pipe.image_processor.postprocess(
            decoded, output_type=output_type, do_denormalize=denormalise
        )
        return images, flagged
