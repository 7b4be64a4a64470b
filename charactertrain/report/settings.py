"""Settings as the pages show them: flat, as JSON, and those that differ from others."""

import json
from collections.abc import Mapping
from typing import Any

from charactertrain.report.run_view import Setting
from charactertrain.storage import without_keys

ABSENT = "(none)"
"""Shown where a config has no such setting."""


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Each setting as JSON by its place with dots, without keys of stores."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat_settings(value, f"{prefix}{key}.")
        # Such as a constitution's traits.
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            items = {str(index): item for index, item in enumerate(value)}
            found |= flat_settings(items, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = without_keys(json.dumps(value, ensure_ascii=False))
    return found


def changed_settings(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Settings that are not the defaults, by name, but for `run`: where it is and what it does."""
    ours, theirs = flat_settings(values), flat_settings(defaults)
    return tuple(
        Setting(key=key, default=theirs.get(key, ABSENT), value=ours.get(key, ABSENT))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not key.startswith("run.")
    )
