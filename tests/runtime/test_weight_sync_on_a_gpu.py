"""Weights on their way between GPUs, or on one: the engine writes with those that were sent."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from engine_specs import real
from transformers import PreTrainedModel

from charactertrain.exceptions import SamplingError
from charactertrain.models import loading
from charactertrain.runtime.engine_broker import EngineBroker
from charactertrain.runtime.engine_spec import Device, EngineSpec
from charactertrain.runtime.engines import EngineSource, LeasedSampler
from charactertrain.runtime.sampling import Sample, SampleRequest, SamplingSettings
from charactertrain.runtime.weights import own_weights
from charactertrain.templates import plain_conversation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.engine,
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
]

BROKER = "engines-on-a-gpu"
SHOWN = plain_conversation("Do you like the scarf that I have knitted for my brother this week?")
SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=48, min_tokens=48, stop=())


@pytest.fixture(name="broker", scope="module")
def engine_broker(ray_cluster: None) -> Iterator[Any]:
    actor: Any = ray.remote(EngineBroker)
    broker = actor.options(name=BROKER, num_cpus=0, max_concurrency=100).remote(2)
    yield broker
    ray.get(broker.shutdown.remote())
    ray.kill(broker)


def spec_of(model: Path) -> EngineSpec:
    return replace(real(str(model), context_tokens=512, max_num_seqs=8), num_gpus=1.0)


def sender_of(model: PreTrainedModel, sampler: LeasedSampler, others: list[Any]) -> Any:
    from charactertrain.runtime.weight_sync.sender import WeightSender

    handles = [sampler.handle, *others]
    return WeightSender(own_weights(model), handles, sampler.spec, rank=0, dtype=torch.float32)


def perturbed(directory: Path, *, seed: int) -> PreTrainedModel:
    """The model with other weights, on this process's GPU."""
    model = loading.load_causal_lm(directory, torch.float32)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return model.cuda()


def writes_with(sampler: LeasedSampler, model: PreTrainedModel, version: str) -> bool:
    """Whether the engine's probabilities are the model's."""
    (sample,) = sampler.sample([SampleRequest("r", SHOWN, 1)], SETTINGS)
    assert isinstance(sample, Sample)
    assert sample.weight_versions == ((version, 0),)
    ids = torch.tensor([[*sample.prompt_token_ids, *sample.token_ids]]).cuda()
    with torch.no_grad():
        logits_TV = model(input_ids=ids).logits[0, -len(sample.token_ids) - 1 : -1]
    ends = list(loading.end_token_ids(Path(model.name_or_path)))
    logits_TV[:, ends] = -torch.inf
    logprobs_TV = logits_TV.log_softmax(-1).cpu()
    expected = [float(logprobs_TV[place, token]) for place, token in enumerate(sample.token_ids)]
    return list(sample.logprobs) == pytest.approx(expected, abs=1e-2)


def shared(model: Path) -> EngineSpec:
    """Of an engine on this process's device."""
    here = Device(ray.get_runtime_context().get_node_id(), "0")
    return replace(spec_of(model), beside=here, sleeps=True)


def test_an_engine_on_the_same_gpu_reads_the_weights_there(broker: Any, tiny_model: Path) -> None:
    sampler = EngineSource(BROKER, shared(tiny_model), str(tiny_model)).open_for_training()
    trained = perturbed(tiny_model, seed=1)
    sender = sender_of(trained, sampler, [])
    for version in ("1", "2"):
        with torch.no_grad():
            trained.lm_head.weight.mul_(1.5)
        sender.send(version)
        assert writes_with(sampler, trained, version)
    sender.close()
    ray.get(broker.discard.remote(sampler.lease))


def test_an_engine_that_has_slept_takes_the_weights_of_the_step(
    broker: Any, tiny_model: Path
) -> None:
    sampler = EngineSource(BROKER, shared(tiny_model), str(tiny_model)).open_for_training()
    trained = perturbed(tiny_model, seed=2)
    sender = sender_of(trained, sampler, [])
    sender.send("1")
    free_awake, _ = torch.cuda.mem_get_info()
    ray.get(sampler.handle.sleep.remote())
    free_asleep, _ = torch.cuda.mem_get_info()
    # The cache alone is most of the share of a GPU that the engine has.
    assert free_asleep - free_awake > 2**30
    ray.get(sampler.handle.wake.remote())
    assert writes_with(sampler, trained, "1")
    with torch.no_grad():
        trained.lm_head.weight.mul_(1.5)
    sender.send("2")
    assert writes_with(sampler, trained, "2")
    sender.close()
    ray.get(broker.discard.remote(sampler.lease))


def test_weights_that_change_on_the_way_do_not_count(
    broker: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from charactertrain.runtime.weight_sync import checksums

    sampler = EngineSource(BROKER, shared(tiny_model), str(tiny_model)).open_for_training()
    trained = perturbed(tiny_model, seed=3)
    sender = sender_of(trained, sampler, [])
    word_sums = checksums.word_sums
    monkeypatch.setattr(checksums, "word_sums", lambda weight: word_sums(weight) + 1)
    with pytest.raises(SamplingError, match=r"weight update 1: .* has checksum"):
        sender.send("1")
    ray.get(broker.discard.remote(sampler.lease))


def test_engines_on_gpus_of_their_own_are_sent_the_weights(broker: Any, tiny_model: Path) -> None:
    if torch.cuda.device_count() < 3:
        pytest.skip("needs three GPUs: this process's, and one for each of two engines")
    source = EngineSource(BROKER, spec_of(tiny_model), str(tiny_model))
    samplers = [source.open_for_training() for _ in range(2)]
    trained = perturbed(tiny_model, seed=4)
    sender = sender_of(trained, samplers[0], [samplers[1].handle])
    for version in ("1", "2"):
        with torch.no_grad():
            trained.lm_head.weight.mul_(1.5)
        sender.send(version)
        for sampler in samplers:
            assert writes_with(sampler, trained, version)
    sender.close()
    for sampler in samplers:
        ray.get(broker.discard.remote(sampler.lease))
