"""`python -m robustres`, the form that launchers such as torchrun need."""

from robustres.cli.main import app

app()
