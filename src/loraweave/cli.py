"""The command line. Every command is a thin shell over the public API, in `commands/`.

What LoRAWeave raises on purpose is printed as one message on standard error and ends with status
2, as do wrong usage and what the system refuses; Ctrl-C ends with 130; anything else is a bug and
keeps its traceback.
Nothing here imports torch, so that help is quick; the commands do it when they run.
"""

import errno
import os
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .commands import bench, draw, evaluate, lora, methods, miniature, report, schema, train
from .errors import LoraWeaveError

INTERRUPTED = 130


class Commands(TyperGroup):
    """The commands, with LoRAWeave's errors turned into messages."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LoraWeaveError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno == errno.EPIPE or error.strerror is None:
                raise  # a reader that has gone is click's business
            where = f": {error.filename}" if error.filename else ""
            typer.echo(f"error: {error.strerror}{where}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    help="Several LoRAs in one picture, each where it belongs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(draw.generate)
app.command()(draw.compare)
app.command()(evaluate.references)
app.command()(evaluate.evaluate)
app.command()(methods.methods)
app.command()(report.inspect)
app.command("schema")(schema.schema)
app.command()(lora.convert)
app.command()(lora.merge)
app.command("train")(train.train)
app.add_typer(miniature.app, name="miniature")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"loraweave {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `loraweave` program."""
    _quiet_libraries()
    app(prog_name="loraweave")


def _quiet_libraries() -> None:
    """No advice of the libraries to their programmers, and our own warnings on one line each."""
    # Read by the libraries when they are imported, which is later.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
