"""`python -m robustres`, as launchers such as torchrun need it."""

from robustres.cli.main import app

app()
