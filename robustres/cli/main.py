"""The command `robustres`: registers the commands and turns errors into one line and an exit code.

Exit codes: 0 done; 1 a defect was found, such as a violated sandwich; 2 invalid input; 3 a bug in robustres; 130
interrupted. torch is imported inside the commands, so that --help responds at once.
"""

import os
import sys
import traceback
from pathlib import Path

import typer

from robustres import __version__
from robustres.cli.attack import attack
from robustres.cli.audit import audit
from robustres.cli.certify import certify
from robustres.cli.compare import compare
from robustres.cli.data import data
from robustres.cli.demo import demo
from robustres.cli.enforce import enforce
from robustres.cli.evaluate import evaluate
from robustres.cli.inspect import inspect
from robustres.cli.lipschitz import lipschitz
from robustres.cli.options import spread
from robustres.cli.recheck import recheck
from robustres.cli.replay import replay
from robustres.cli.report import report
from robustres.cli.train import train
from robustres.cli.verify import verify
from robustres.errors import DefectiveBoundError, RobustresError, SandwichViolationError

commands = typer.Typer(
    name="robustres",
    help="How robust is a residual network? Certified radius <= true radius <= distance of the best attack.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"robustres {__version__}")
        raise typer.Exit


@commands.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options that precede the command."""


for command in (
    demo,
    evaluate,
    attack,
    certify,
    lipschitz,
    audit,
    inspect,
    train,
    enforce,
    compare,
    report,
    replay,
    recheck,
    data,
    verify,
):
    commands.command()(spread(command))


def app() -> None:
    """Run the command line."""
    try:
        commands()
    except (SandwichViolationError, DefectiveBoundError) as error:
        _say(error)
        sys.exit(1)
    except RobustresError as error:
        _say(error)
        sys.exit(2)
    except MemoryError as error:
        _say(f"out of memory ({_line(error)}); use a smaller --batch-size")
        sys.exit(2)
    except Exception as error:
        if _is_out_of_memory(error):
            _say(f"out of GPU memory ({_line(error)}); use a smaller --batch-size")
            sys.exit(2)
        if os.environ.get("ROBUSTRES_TRACEBACK"):
            traceback.print_exc()
        _say(
            f"{type(error).__name__}: {_line(error)} ({_place(error)}); this is a bug in robustres, please report "
            "it with the command (ROBUSTRES_TRACEBACK=1 before the command shows where it happened)"
        )
        sys.exit(3)


def _say(error: object) -> None:
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(str(error), err=True)


def _line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _place(error: BaseException) -> str:
    """File and line of the innermost frame in this package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "robustres" in Path(frame.filename).parts] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether this is torch's out-of-memory error; torch is looked up only if it has been imported already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
