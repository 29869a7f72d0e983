"""Every error that LoRAWeave raises on purpose.

    LoraWeaveError
    ├── SceneError                 what was asked for cannot be drawn
    │   ├── PromptSyntaxError      the prompt's markup is wrong; names the place
    │   └── RegionError            a box or mask does not fit the picture
    ├── LoraError                  a LoRA file cannot be used
    │   ├── UnsupportedLoraFormat  not a LoRA, damaged, or of a kind that is not supported
    │   └── BaseModelMismatch      a good LoRA or adapter, made for another base model
    ├── MethodError                a method cannot do what it was asked to
    ├── TrainingError              a LoRA or the miniature cannot be trained from this input
    └── ModelNotFound              no such base model or image adapter: folder, file or name

Each message says what was found, what was expected, and what to do next.
The command line prints it without a traceback and exits with status 2.
"""


class LoraWeaveError(Exception):
    """Root of all errors that LoRAWeave raises on purpose."""


class SceneError(LoraWeaveError):
    """What was asked for cannot be drawn."""


class PromptSyntaxError(SceneError):
    """The prompt's markup is wrong.

    Args:
        message: what is wrong and what to write instead.
        prompt: the whole prompt, if the place is known.
        position: index of the first wrong character in `prompt`.
    """

    def __init__(self, message: str, prompt: str = "", position: int | None = None):
        self.prompt, self.position = prompt, position
        if position is not None:
            message = f"{message}\n  {prompt}\n  {' ' * position}^"
        super().__init__(message)


class RegionError(SceneError):
    """A box or mask does not fit the picture."""


class LoraError(LoraWeaveError):
    """A LoRA file cannot be used."""


class UnsupportedLoraFormat(LoraError):
    """Not a LoRA, damaged, or of a kind that is not supported."""


class BaseModelMismatch(LoraError):
    """A good LoRA or image adapter, but made for another base model."""


class MethodError(LoraWeaveError):
    """A method cannot do what it was asked to."""


class TrainingError(LoraWeaveError):
    """A LoRA or the miniature cannot be trained from this input."""


class ModelNotFound(LoraWeaveError):
    """No such base model or image adapter: folder, file or name."""
