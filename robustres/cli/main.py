"""The command `robustres`: registers the commands and turns errors into one line and an exit code.

Exit codes: 0 done; 1 a defect was found, such as a violated sandwich; 2 bad input; 130 interrupted.
torch is imported inside the commands, so that --help answers at once.
"""

import sys

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
from robustres.cli.report import report
from robustres.cli.train import train
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
    """Options that stand before the command."""


for command in (demo, evaluate, attack, certify, lipschitz, audit, inspect, train, enforce, compare, report, data):
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


def _say(error: Exception) -> None:
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(str(error), err=True)
