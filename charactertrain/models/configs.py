"""A model's config.json by what a config calls the model, without its weights."""

import json
from pathlib import Path
from typing import Any

from charactertrain.exceptions import ModelError

_SHIPPED = Path(__file__).with_name("shipped_configs.json")
"""The dimensions of the models in conf/model/, so that a plan needs no hub."""


def read_config(path: str) -> dict[str, Any]:
    """The config of a local directory, of a model in conf/model/, or of the hub.

    Raises:
        ModelError: It is not to be had.
    """
    shipped: dict[str, dict[str, Any]] = json.loads(_SHIPPED.read_text())
    directory = Path(path).expanduser()
    if directory.is_dir():
        return _read(directory / "config.json", path)
    if path in shipped:
        return shipped[path]
    return _read(_of_hub(path), path)


def _read(file: Path, path: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path: expected the config of {path!r} in {file}, and it cannot be read: "
            f"{error}; give the directory of a Hugging Face model"
        ) from error
    if not isinstance(values, dict):
        raise ModelError(f"{file}: expected an object, found {type(values).__name__}")
    return values


def _of_hub(path: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, "config.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model.path: {path!r} is no directory here, none of conf/model/, and its config.json "
            f"could not be had from the hub: {error}. Give a directory that holds a config.json."
        ) from error
