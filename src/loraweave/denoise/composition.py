"""A scene made ready on a backbone: its passes, their texts, adapters and tokens.

A pass is one evaluation of the denoiser with one conditioning and a list of (adapter, weight).
Pass 0 is the base model with the styles, pass k has concept k too.

`P` passes, `N` concepts, `T` tokens, `D` text width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbone.sd1 import StableDiffusion1
from ..lora.adapter import Adapter
from ..prompt import PassPrompt, full_prompt, pass_prompt
from ..region import Region, several
from ..scene import Concept, Scene
from .hooks import AdapterHooks, Weighted, adapter_hooks


@dataclass(frozen=True)
class Words:
    """Token positions of one pass: every concept's noun, and the triggers that are in its text."""

    nouns: Mapping[str, list[int]]
    triggers: Mapping[str, list[int]]

    def of(self, concept: str) -> list[int]:
        """Trigger (if this pass has it) and noun of a concept."""
        return [*self.triggers.get(concept, []), *self.nouns[concept]]


@dataclass(frozen=True)
class Pass:
    """One conditioning with its adapters.

    Attributes:
        text: what the text encoder got.
        adapters: what acts on the denoiser, summed.
        words: where the concepts' words are.
        states: (2, T, D), unconditional and conditional text states; T is the same in all
            passes of a composition. Where tokens differ from layer to layer, D is that of all
            layers, and `StableDiffusion1.own_text` has a layer's part.
    """

    text: str
    adapters: tuple[Weighted, ...]
    words: Words
    states: Float[Tensor, "2 T D"]


class Composition:
    """What a method works with.

    Attributes:
        scene: what was asked for.
        backbone: the base model.
        concepts: in the order of the prompt.
        adapters: every LoRA of the scene by name.
        regions: of the scene, and masks (h, w) that came without one, by the concepts' names.
            Whoever lays out the picture himself may replace them before the stages are made.
        schedules: by name of those that do not act all the time, the factor of their weight at a
            fraction of the run in [0, 1).
    """

    def __init__(
        self, scene: Scene, backbone: StableDiffusion1, adapters: Mapping[str, Adapter],
        unet_hooks: AdapterHooks, text_hooks: AdapterHooks,
        masks: Mapping[str, Sequence[Tensor]] | None = None,
    ):  # fmt: skip
        self.scene, self.backbone, self.adapters = scene, backbone, dict(adapters)
        self.concepts: tuple[Concept, ...] = scene.concepts
        self.unet_hooks, self._text_hooks = unet_hooks, text_hooks
        self.width, self.height = backbone.size(scene.width, scene.height)
        self.regions: dict[str, list[Region | Tensor]] = {
            name: [*several(scene.regions.get(name, ())), *(masks or {}).get(name, ())]
            for name in {**scene.regions, **(masks or {})}
        }
        self.schedules: dict[str, Callable[[float], float]] = {
            name: lora.strength for name, lora in scene.loras.items() if lora.scheduled
        }
        self._chunks = self._longest()
        # What was encoded so far and with whose LoRAs, by all that it depends on.
        self._texts: dict[str, tuple[list[str], Tensor]] = {}

    @property
    def placed(self) -> int:
        """Number of the concepts if every one has a region, else 0."""
        every = all(self.regions.get(concept.name) for concept in self.concepts)
        return len(self.concepts) if every else 0

    @property
    def texts(self) -> list[list[str]]:
        """Whose LoRAs read each text so far; a negative one was read with each."""
        return [names for names, _ in self._texts.values()]

    def text_like(self) -> Float[Tensor, "T D"]:
        """States of the shape that all texts have."""
        former = dict(self._texts)  # what is encoded for the picture is noted down, this is not
        states = self.make_pass((), background=True).states[0]
        self._texts = former
        return states

    def passes(self) -> list[Pass]:
        """Pass 0 without concepts, then one pass for each concept: P = N + 1.

        What is on a concept acts in its pass, what is on the background in pass 0.
        """
        return [self.make_pass((), background=True)] + [self.make_pass([c]) for c in self.concepts]

    def own_text(self, name: str, otherwise: PassPrompt) -> PassPrompt:
        """What is read in a concept's regions, or (`background`) outside of all.

        That is the scene's own prompt for it if it has one, and `otherwise` if not.
        """
        own = self.scene.own_prompt(name)
        return otherwise if own is None else full_prompt(own)

    def merged_pass(self) -> Pass:
        """One pass with all triggers, all LoRAs and all negative prompts."""
        return self.make_pass(self.concepts, background=True)

    @torch.no_grad()
    def make_pass(
        self, own: Sequence[Concept], *, background: bool = False, prompt: PassPrompt | None = None,
        readers: Sequence[Concept] | None = None, instead: Adapter | None = None,
    ) -> Pass:  # fmt: skip
        """A text with what acts on it.

        Args:
            own: concepts whose LoRAs act on the denoiser, and whose negative prompts count; with
                them act the LoRAs that are on them, and those that act everywhere.
            background: the LoRAs on the background act, too.
            prompt: the text; if not given, that with the triggers of what acts.
            readers: concepts whose LoRAs act on the text encoder; the same if not given.
            instead: an adapter that stands for all concepts, with its own weights.
        """
        scene, names = self.scene, [concept.name for concept in own]
        if prompt is None:
            prompt = pass_prompt(scene.parsed, scene.triggered(names, background))
        others = scene.acting(names, background)
        on_unet = [(self.adapters[one.name], one.weight) for one in own]
        of_text = own if readers is None else readers
        on_text = [(self.adapters[one.name], one.text_encoder_weight) for one in of_text]
        with_text = scene.acting([one.name for one in of_text], background)
        if instead is not None:
            on_unet = on_text = [(instead, 1.0)]
        on_unet = (*on_unet, *((self.adapters[s.name], s.weight) for s in others))
        on_text = (*on_text, *((self.adapters[s.name], s.text_encoder_weight) for s in with_text))
        negative = scene.negative(*names)
        key = repr((negative, prompt, [(adapter.name, weight) for adapter, weight in on_text]))
        if key not in self._texts:
            # As in diffusers, a LoRA of the text encoder acts on the negative prompt too.
            with self._text_hooks.rows([on_text] * 2):
                states = self.backbone.encode([negative, prompt], self._chunks)
            self._texts[key] = [adapter.name for adapter, _ in on_text], states
        return Pass(prompt.text, on_unet, self._words(prompt), self._texts[key][1])

    def _words(self, prompt: PassPrompt) -> Words:
        """Positions of the concepts' words; those of what is on a concept count as its trigger."""
        nouns, triggers = (
            {n: self.backbone.token_positions(prompt.text, span) for n, span in spans.items()}
            for spans in (prompt.nouns, prompt.triggers)
        )
        for style in self.scene.styles:
            words = triggers.pop(style.name, []) + nouns.pop(style.name, [])
            if words and style.on in nouns:
                triggers[style.on] = triggers.get(style.on, []) + words
        return Words(nouns, triggers)

    def _longest(self) -> int:
        """Chunks of the longest text, so that the states of all passes have the same length."""
        parsed, scene = self.scene.parsed, self.scene
        names = [concept.name for concept in self.concepts]
        sets = [scene.triggered((), True), *(scene.triggered([n], False) for n in names)]
        prompts = [full_prompt(parsed), *(pass_prompt(parsed, some) for some in sets)]
        own = [scene.own_prompt(name) for name in scene.prompts]
        prompts += [full_prompt(prompt) for prompt in own if prompt is not None]
        negatives = [scene.negative(name) for name in names]
        negatives.append(scene.negative(*names))
        return max(self.backbone.chunks(prompt.text) for prompt in prompts + negatives)


@contextmanager
def composition(
    scene: Scene, backbone: StableDiffusion1, adapters: Mapping[str, Adapter],
    masks: Mapping[str, Sequence[Tensor]] | None = None,
) -> Iterator[Composition]:  # fmt: skip
    """Prepare a scene; the model gets hooks inside this context and none after it.

    Args:
        scene: what is drawn.
        backbone: by which model.
        adapters: every LoRA that a method may use, by name.
        masks: (h, w) in [0, 1] each, more regions by the names of concepts.
    """
    every = list(adapters.values())
    with (
        adapter_hooks(backbone.unet, "unet", every, backbone.device) as unet_hooks,
        adapter_hooks(backbone.text_encoder, "text_encoder", every, backbone.device) as text_hooks,
        frozen(backbone.unet, backbone.text_encoder),
    ):
        yield Composition(scene, backbone, adapters, unet_hooks, text_hooks, masks)


@contextmanager
def frozen(*models: torch.nn.Module) -> Iterator[None]:
    """No weight asks for a gradient, layers are in eval mode and none is checkpointed.

    A checkpointed layer would run again in the backward pass, when its rows' adapters and the
    recorder are no longer set. Everything comes back on exit.
    """
    wanting = [p for model in models for p in model.parameters() if p.requires_grad]
    modules = [m for model in models for m in model.modules()]
    training = [m for m in modules if m.training]
    checkpointed = [m for m in modules if getattr(m, "gradient_checkpointing", False)]
    try:
        for module in checkpointed:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        for parameter in wanting:
            parameter.requires_grad_(False)
        for module in training:
            module.training = False
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
        for module in checkpointed:
            module.gradient_checkpointing = True  # type: ignore[assignment]
