"""What ships with the package: the base model, its LoRAs, and the judge's weights."""

from pathlib import Path

from ..errors import LoraError, ModelNotFound

WEIGHTS = Path(__file__).parent / "weights"


def base_folder() -> Path:
    """The miniature as a diffusers folder.

    Raises:
        ModelNotFound: this installation came without weights.
    """
    folder = WEIGHTS / "base"
    if not (folder / "model_index.json").is_file():
        raise ModelNotFound(
            "the miniature's weights are not in this installation; install the package again, or "
            "make them with `loraweave miniature train`"
        )
    return folder


def lora_names() -> list[str]:
    """Names of the LoRAs that ship."""
    return sorted(path.stem for path in (WEIGHTS / "loras").glob("*.safetensors"))


def lora_file(name: str) -> Path:
    """The file of a LoRA that ships.

    Raises:
        LoraError: there is none of that name.
    """
    names = lora_names()
    if name not in names:
        raise LoraError(f"no LoRA {name!r} ships with the miniature; there are: {', '.join(names)}")
    return WEIGHTS / "loras" / f"{name}.safetensors"
