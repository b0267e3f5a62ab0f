"""The TOML file of a run: its settings replace the defaults of options, and options take precedence."""

import tomllib
from pathlib import Path
from typing import Any

import typer

REPEATED = ("require", "attack_setting")


def take_settings(context: typer.Context, file: Path | None) -> Path | None:
    """Use the settings in a TOML file as the command's defaults; raise InputError for a setting that the command
    lacks.
    """
    from robustres.errors import InputError

    if file is None:
        return None
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the settings in {file}: {error}") from error
    known = {parameter.name for parameter in context.command.params} - {"settings_file"}
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise InputError(f"{file}: {context.info_name} has no setting {key!r}; it has {', '.join(sorted(known))}")
        found[name] = _as_option(name, value)
    context.default_map = {**(context.default_map or {}), **found}
    return file


def _as_option(name: str, value: Any) -> Any:
    """A value in the file, written as on the command line."""
    if name == "attack_setting" and isinstance(value, dict):
        return [f"{attack}.{key}={_word(entry)}" for attack, table in value.items() for key, entry in table.items()]
    if name in REPEATED:
        return [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
    return ",".join(map(_word, value)) if isinstance(value, list) else value if isinstance(value, bool) else str(value)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
