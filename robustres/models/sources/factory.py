"""Networks built by the user's own code: the only source of models that executes code, and only on request."""

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from robustres.errors import ModelError


def call_factory(module_name: str, call: str) -> nn.Module:
    """Import `module_name`, with the working directory on the path, as for `python -m`, and call the factory.

    call: a dotted name, optionally with keyword arguments that are Python literals: `build` or `build(width=32)`.
    """
    attribute, arguments = _parse(call)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            factory = getattr(factory, name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot import {module_name}:{attribute} ({error}); check the name and the path") from error
    try:
        module = factory if isinstance(factory, nn.Module) and not arguments else factory(**arguments)
    except Exception as error:
        raise ModelError(f"{module_name}:{attribute} failed with {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{module_name}:{attribute} must return an nn.Module, got {type(module).__name__}")
    return module


def _parse(call: str) -> tuple[str, dict[str, Any]]:
    """The dotted name and the keyword arguments of `name` or `name(key=literal, ...)`."""
    if "(" not in call:
        return call, {}
    try:
        tree = ast.parse(call, mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(keyword.arg is None for keyword in tree.keywords):
            raise ValueError("only keyword arguments can be given")
        return ast.unparse(tree.func), {str(key.arg): ast.literal_eval(key.value) for key in tree.keywords}
    except (SyntaxError, ValueError) as error:
        raise ModelError(f"cannot read {call!r} as a call with literal keyword arguments ({error})") from error
