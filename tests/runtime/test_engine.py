"""One real vLLM engine, held against transformers; and leases on engines that die."""

import asyncio
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import ray
import torch
from engine_specs import real
from ray import cloudpickle
from ray.exceptions import RayActorError, RayError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
)

from charactertrain import chat
from charactertrain.exceptions import SamplingError
from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.engine_actor import EngineActor
from charactertrain.runtime.engine_broker import EngineBroker
from charactertrain.runtime.engine_spec import EngineCounts, EngineSpec
from charactertrain.runtime.engines import EngineSource, LeasedSampler
from charactertrain.runtime.metric_catalog import ENGINE_LEVELS, ENGINE_TOTALS, RAY_PREFIX
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sample,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.runtime.torch_engine import TorchEngine
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.weights import own_weights
from charactertrain.stages.preference_model.step import group_rewards
from charactertrain.templates import JUDGE_CHOICES, Shown, judge_conversation, plain_conversation

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
on_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="engines on GPUs take weights over NCCL"
)

BROKER = "test-engine-broker"
CONTEXT_TOKENS = 512
END_TOKEN = 0
NATURAL = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=120, min_tokens=0, stop=())
FIXED = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=24, min_tokens=24, stop=())
# Longer than a block of the prefix cache.
SHOWN = plain_conversation("Do you like the scarf that I have knitted for my brother this week?")
OTHER = plain_conversation("It rains.")


@dataclass(frozen=True)
class Engines:
    """The specs of the engines that the broker may start."""

    generate: EngineSpec
    broker: Any

    def open(self, weights: Path) -> LeasedSampler:
        """A sampler on these weights, in the shape of the tiny model."""
        return EngineSource(BROKER, self.generate, str(weights)).open()


@pytest.fixture(name="engines", scope="module")
def engine_broker(ray_cluster: None, tiny_model: Path) -> Iterator[Engines]:
    """A broker; engines start when they are asked for, one of a kind."""
    spec = replace(
        real(str(tiny_model), context_tokens=CONTEXT_TOKENS, max_num_seqs=16),
        num_gpus=0.4 if torch.cuda.is_available() else 0.0,
    )
    actor: Any = ray.remote(EngineBroker)
    broker = actor.options(name=BROKER, num_cpus=0, max_concurrency=100).remote(1)
    yield Engines(spec, broker)
    ray.get(broker.shutdown.remote())
    ray.kill(broker)


@pytest.fixture(name="sampler")
def base_sampler(engines: Engines, tiny_model: Path) -> Iterator[LeasedSampler]:
    """The engine on the base's weights."""
    sampler = engines.open(tiny_model)
    yield sampler
    sampler.close()


@pytest.fixture(name="model", scope="module")
def base_model(tiny_model: Path) -> PreTrainedModel:
    return loading.load_causal_lm(tiny_model, torch.float32)


@pytest.fixture(name="tokenizer", scope="module")
def model_tokenizer(tiny_model: Path) -> Any:
    return loading.load_tokenizer(tiny_model)


def perturbed(model: PreTrainedModel, directory: Path, *, seed: int) -> PreTrainedModel:
    """The same model with other weights, those of norms included."""
    other = loading.load_causal_lm(directory, torch.float32)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return other


def engine_of(sampler: LeasedSampler) -> str:
    """The name of the engine that the sampler has a lease on."""
    return sampler.lease.partition("/")[0]


def draw(
    sampler: LeasedSampler,
    seeds: Sequence[int],
    settings: SamplingSettings = NATURAL,
    shown: Shown = SHOWN,
) -> list[Sample]:
    requests = [SampleRequest(f"r{seed}", shown, seed) for seed in seeds]
    samples = sampler.sample(requests, settings)
    assert all(isinstance(sample, Sample) for sample in samples)
    return cast(list[Sample], samples)


def score(sampler: LeasedSampler, token_ids: Sequence[int], shown: Shown = SHOWN) -> list[float]:
    (found,) = sampler.score([ScoreRequest("s", shown, tuple(token_ids))])
    assert isinstance(found, Score), found
    return list(found.logprobs)


def expected_logprobs(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    forbidden: Sequence[int] = (),
) -> list[float]:
    """The response's log-probabilities by transformers."""
    ids = torch.tensor([[*prompt_ids, *token_ids]])
    with torch.no_grad():
        logits_TV = model(input_ids=ids).logits[0, -len(token_ids) - 1 : -1]
    logits_TV[:, list(forbidden)] = -torch.inf
    logprobs_TV = logits_TV.log_softmax(-1)
    return [float(logprobs_TV[place, token]) for place, token in enumerate(token_ids)]


# Writing


def test_samples_depend_on_the_seed_and_not_on_their_neighbours(sampler: LeasedSampler) -> None:
    together = draw(sampler, range(8))
    assert [sample.request_id for sample in together] == [f"r{seed}" for seed in range(8)]
    assert len({sample.token_ids for sample in together}) == 8
    assert [draw(sampler, [seed])[0].token_ids for seed in range(3)] == [
        sample.token_ids for sample in together[:3]
    ]


def test_samples_end_by_themselves_or_at_the_limit(sampler: LeasedSampler, tokenizer: Any) -> None:
    samples = draw(sampler, range(16), replace(NATURAL, max_tokens=40))
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert len(sample.logprobs) == len(sample.token_ids) <= 40
        ended = sample.token_ids[-1] == END_TOKEN
        assert ended == (sample.finish_reason == "stop")
        assert END_TOKEN not in sample.token_ids[:-1]
        written = sample.token_ids[:-1] if ended else sample.token_ids
        assert sample.text == tokenizer.decode(written)
        assert list(sample.prompt_token_ids) == chat.encode(SHOWN, tokenizer)


def test_logprobs_of_a_sample_are_those_it_was_drawn_with(
    sampler: LeasedSampler, model: PreTrainedModel
) -> None:
    samples = draw(sampler, range(4))
    assert "stop" in {sample.finish_reason for sample in samples}
    for sample in samples:
        expected = expected_logprobs(model, sample.prompt_token_ids, sample.token_ids)
        assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)
        assert score(sampler, sample.token_ids) == pytest.approx(list(sample.logprobs), abs=1e-4)


def test_logprobs_of_a_fixed_length_are_those_without_an_end(
    sampler: LeasedSampler, model: PreTrainedModel
) -> None:
    # What the policy stage takes for the sampler's distribution where endings are fixed.
    for sample in draw(sampler, range(8), FIXED):
        assert (len(sample.token_ids), sample.finish_reason) == (24, "length")
        assert END_TOKEN not in sample.token_ids
        expected = expected_logprobs(
            model, sample.prompt_token_ids, sample.token_ids, forbidden=[END_TOKEN]
        )
        assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)


def test_logprobs_are_those_of_the_tempered_distribution(
    sampler: LeasedSampler, model: PreTrainedModel
) -> None:
    (sample,) = draw(sampler, [1], replace(NATURAL, temperature=0.5))
    ids = torch.tensor([[*sample.prompt_token_ids, *sample.token_ids]])
    with torch.no_grad():
        logits_TV = model(input_ids=ids).logits[0, -len(sample.token_ids) - 1 : -1]
    logprobs_TV = (logits_TV / 0.5).log_softmax(-1)
    expected = [float(logprobs_TV[i, token]) for i, token in enumerate(sample.token_ids)]
    assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)


def test_samples_stop_at_a_text_that_is_not_part_of_them(sampler: LeasedSampler) -> None:
    samples = draw(sampler, range(8), replace(NATURAL, stop=(" ",)))
    assert all(" " not in sample.text for sample in samples)
    assert any(sample.text for sample in samples)


# Scoring and judging


@pytest.mark.parametrize("shown", [SHOWN, OTHER], ids=["long", "short"])
def test_scores_are_those_of_transformers_however_often_asked_for(
    sampler: LeasedSampler, model: PreTrainedModel, tokenizer: Any, shown: Shown
) -> None:
    # Long enough for the response itself to be found in the prefix cache the second time.
    token_ids = tokenizer.encode("a response of some length. " * 6)
    expected = expected_logprobs(model, chat.encode(shown, tokenizer), token_ids)
    first, again = (score(sampler, token_ids, shown) for _ in range(2))
    assert first == pytest.approx(expected, abs=1e-4)
    assert again == pytest.approx(first, abs=1e-5)
    shorter = score(sampler, token_ids[:70], shown)
    assert shorter == pytest.approx(expected[:70], abs=1e-4)


def test_scores_of_many_come_in_order(
    sampler: LeasedSampler, model: PreTrainedModel, tokenizer: Any
) -> None:
    texts = [f"Response number {number}." for number in range(40)]
    requests = [
        ScoreRequest(text, SHOWN if len(text) % 2 else OTHER, tuple(tokenizer.encode(text)))
        for text in texts
    ]
    scores = sampler.score(requests)
    assert [found.request_id for found in scores] == texts
    for request, found in zip(requests, scores, strict=True):
        assert isinstance(found, Score)
        expected = expected_logprobs(
            model, chat.encode(request.shown, tokenizer), request.token_ids
        )
        assert list(found.logprobs) == pytest.approx(expected, abs=1e-4)


def test_choices_are_the_models_next_token_probabilities(
    sampler: LeasedSampler, model: PreTrainedModel, tokenizer: Any
) -> None:
    shown = judge_conversation([], "Tea?", "Yes.", "No.", ties=False, question=0)
    (choice,) = sampler.choose([ChoiceRequest("c", shown, JUDGE_CHOICES)])
    assert isinstance(choice, Choice)
    prompt_ids = chat.encode(shown, tokenizer)
    letters = [tokenizer.encode(letter)[0] for letter in JUDGE_CHOICES]
    expected = [expected_logprobs(model, prompt_ids, [letter])[0] for letter in letters]
    assert list(choice.logprobs) == pytest.approx(expected, abs=1e-4)


def test_what_exceeds_the_context_is_a_failure_and_harms_nothing_else(
    sampler: LeasedSampler, tokenizer: Any
) -> None:
    long = plain_conversation("x" * CONTEXT_TOKENS)
    sampled = sampler.sample([SampleRequest("a", long, 1), SampleRequest("b", OTHER, 1)], FIXED)
    scored = sampler.score([ScoreRequest("a", long, (5,)), ScoreRequest("b", OTHER, (5,))])
    chosen = sampler.choose(
        [ChoiceRequest("a", long, JUDGE_CHOICES), ChoiceRequest("b", OTHER, JUDGE_CHOICES)]
    )
    for failure, served in (sampled, scored, chosen):
        assert isinstance(failure, Failure)
        assert (failure.request_id, failure.reason) == ("a", "too_long")
        assert f"model.context_tokens {CONTEXT_TOKENS}" in failure.detail
        assert not isinstance(served, Failure)
        assert served.request_id == "b"


def test_what_just_fits_the_context_is_served(sampler: LeasedSampler, tokenizer: Any) -> None:
    around = len(chat.encode(plain_conversation(""), tokenizer))
    fits = plain_conversation("x" * (CONTEXT_TOKENS - around - 24))
    (sample,) = draw(sampler, [1], FIXED, fits)
    assert len(sample.token_ids) == 24
    assert len(score(sampler, sample.token_ids[:-1], fits)) == 23


# Counting


def counted(sampler: LeasedSampler, work: Callable[[], Any]) -> EngineCounts:
    """What the engine says that it did for some work."""
    before: EngineCounts = ray.get(sampler.handle.counts.remote())
    work()
    after: EngineCounts = ray.get(sampler.handle.counts.remote())
    return after.since(before)


def test_counts_are_those_of_the_work(sampler: LeasedSampler) -> None:
    samples: list[Sample] = []
    found = counted(sampler, lambda: samples.extend(draw(sampler, range(8), FIXED)))
    assert found.requests == 8
    assert found.generated_tokens == sum(len(sample.token_ids) for sample in samples)
    assert found.prompt_tokens == sum(len(sample.prompt_token_ids) for sample in samples)
    assert found.cached_tokens == sum(sample.cached_tokens for sample in samples)
    assert found.rates(1.0)["mean_running"] > 4


def test_requests_of_one_token_are_counted_as_running(sampler: LeasedSampler) -> None:
    shown = judge_conversation([], "Tea?", "Yes.", "No.", ties=False, question=0)
    asked = [ChoiceRequest(f"c{index}", shown, JUDGE_CHOICES) for index in range(8)]
    found = counted(sampler, lambda: sampler.choose(asked))
    assert found.requests == 8
    assert found.rates(1.0)["mean_running"] >= 1


@pytest.mark.slow
def test_counts_are_on_rays_prometheus_endpoint(sampler: LeasedSampler) -> None:
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    page, ends = "", time.monotonic() + 60
    while "charactertrain_engine_generated_tokens" not in page and time.monotonic() < ends:
        # The counts are shown at a step of the engine, every few seconds.
        draw(sampler, [1], FIXED)
        time.sleep(1)
        page = opener.open(url, timeout=5).read().decode()
    lines = [line for line in page.splitlines() if "charactertrain_engine_" in line]
    for metric in (
        ENGINE_TOTALS["prompt_tokens"],
        ENGINE_TOTALS["generated_tokens"],
        *ENGINE_LEVELS.values(),
    ):
        (line, *_) = [line for line in lines if line.startswith(f"{RAY_PREFIX}{metric.name}{{")]
        assert 'run="tests"' in line


# Weights


def sender_of(model: PreTrainedModel, sampler: LeasedSampler) -> Any:
    from charactertrain.runtime.weight_sync.sender import WeightSender

    return WeightSender(
        own_weights(model), [sampler.handle], sampler.spec, rank=0, dtype=torch.float32
    )


@on_cpu
def test_weights_that_are_sent_are_those_sampled_from(
    engines: Engines, sampler: LeasedSampler, model: PreTrainedModel, tiny_model: Path
) -> None:
    (before,) = draw(sampler, [1])
    ray.get(engines.broker.rename_weights.remote(sampler.lease, "in training"))
    trained = perturbed(model, tiny_model, seed=1)
    sender = sender_of(trained, sampler)
    for version in ("7", "8"):
        if version == "8":
            with torch.no_grad():
                trained.lm_head.weight.mul_(1.5)
        sender.send(version)
        (sample,) = draw(sampler, [1])
        assert sample.weight_versions == ((version, 0),)
        expected = expected_logprobs(trained, sample.prompt_token_ids, sample.token_ids)
        assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)
        # Nothing that was cached under the weights before is used.
        found = score(sampler, before.token_ids)
        expected = expected_logprobs(trained, before.prompt_token_ids, before.token_ids)
        assert found == pytest.approx(expected, abs=1e-4)
        assert found != pytest.approx(list(before.logprobs), abs=1e-2)
    sender.close()


@on_cpu
@pytest.mark.slow
def test_an_engine_of_two_ranks_takes_the_weights_that_are_sent(
    engines: Engines, model: PreTrainedModel, tiny_model: Path
) -> None:
    spec = replace(engines.generate, tensor_parallel_size=2, num_cpus=2.0)
    sampler = EngineSource(BROKER, spec, str(tiny_model)).open_for_training()
    (sample,) = draw(sampler, [1])
    expected = expected_logprobs(model, sample.prompt_token_ids, sample.token_ids)
    assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)
    trained = perturbed(model, tiny_model, seed=4)
    sender = sender_of(trained, sampler)
    sender.send("1")
    (sample,) = draw(sampler, [1])
    assert sample.weight_versions == (("1", 0),)
    expected = expected_logprobs(trained, sample.prompt_token_ids, sample.token_ids)
    assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)
    sender.close()
    ray.get(engines.broker.discard.remote(sampler.lease))


@on_cpu
def test_a_text_in_writing_goes_on_with_the_new_weights(
    engines: Engines, tiny_model: Path, model: PreTrainedModel
) -> None:
    sampler = engines.open(tiny_model)
    ray.get(engines.broker.rename_weights.remote(sampler.lease, "in training"))
    others = perturbed(model, tiny_model, seed=8)
    old_sender = sender_of(model, sampler)
    old_sender.send("1")
    sender = sender_of(others, sampler)
    # Several times what is written at a time, so that it takes a while.
    requests = [SampleRequest(f"r{seed}", SHOWN, seed) for seed in range(96)]
    writing = sampler.handle.sample.remote(requests, NATURAL)
    time.sleep(0.5)
    sender.send("2")
    samples: list[Sample] = ray.get(writing)
    of_both = [sample for sample in samples if len(sample.weight_versions) > 1]
    assert of_both
    for sample in of_both:
        (first, start), (second, change) = sample.weight_versions
        assert (first, start, second) == ("1", 0, "2")
        assert 0 < change < len(sample.token_ids)
        # Each token has the probability that the weights gave it that wrote it.
        old, new = (
            expected_logprobs(weights, sample.prompt_token_ids, sample.token_ids)
            for weights in (model, others)
        )
        assert list(sample.logprobs) == pytest.approx([*old[:change], *new[change:]], abs=1e-4)
        assert old[change:] != pytest.approx(new[change:], abs=1e-2)
    sampler.close()


@on_cpu
def test_engine_with_other_weights_is_given_those_asked_for(
    engines: Engines, model: PreTrainedModel, tiny_model: Path, tmp_path: Path
) -> None:
    trained = perturbed(model, tiny_model, seed=2)
    trained.save_pretrained(tmp_path)
    ids = list(range(40, 80))
    keys = []
    for weights, expected_model in ((tmp_path, trained), (tiny_model, model)):
        sampler = engines.open(weights)
        (sample,) = draw(sampler, [1])
        assert sample.weight_versions == ((str(weights), 0),)
        expected = expected_logprobs(expected_model, sample.prompt_token_ids, ids)
        assert score(sampler, ids) == pytest.approx(expected, abs=1e-4)
        keys.append(engine_of(sampler))
        sampler.close()
    assert keys[0] == keys[1]


@pytest.fixture(name="tied_model", scope="module")
def tied_tiny_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose output layer shares the embeddings."""
    directory = tmp_path_factory.mktemp("tied")
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    loading.load_tokenizer(tiny_model).save_pretrained(directory)
    return directory


@on_cpu
def test_a_tied_output_layer_takes_the_new_weights_too(
    engines: Engines, tied_model: Path, tmp_path: Path
) -> None:
    tied = replace(engines, generate=replace(engines.generate, architecture=str(tied_model)))
    model = loading.load_causal_lm(tied_model, torch.float32)
    ids = list(range(40, 80))

    def holds(expected_model: PreTrainedModel) -> bool:
        prompt_ids = draw(sampler, [1])[0].prompt_token_ids
        expected = expected_logprobs(expected_model, prompt_ids, ids)
        return score(sampler, ids) == pytest.approx(expected, abs=1e-4)

    sampler = tied.open(tied_model)
    assert holds(model)
    sent = perturbed(model, tied_model, seed=6)
    ray.get(engines.broker.rename_weights.remote(sampler.lease, "in training"))
    sender_of(sent, sampler).send("1")
    assert holds(sent)
    sampler.close()
    loaded = perturbed(model, tied_model, seed=7)
    loaded.save_pretrained(tmp_path)
    sampler = tied.open(tmp_path)
    assert holds(loaded)
    assert not holds(sent)
    sampler.close()


def send_in_small_parts(model: PreTrainedModel, handle: Any, *, damaged: int) -> None:
    """A weight update in many parts; a number of the part numbered `damaged` is changed."""
    from charactertrain.runtime.weight_sync.sender import EngineClient
    from charactertrain.runtime.weight_sync.shared_memory import (
        SharedMemoryTrainerEngine,
        SharedMemoryTrainerInitInfo,
    )
    from charactertrain.runtime.weight_sync.source import ZeroWeightSource

    class DamagingClient(EngineClient):
        count = 0

        def update_weights(self, update_info: Any) -> None:
            if self.count == damaged:
                engine._segment.tensors[update_info["last"] - 1].view(-1)[-1] += 1e-3
            self.count += 1
            super().update_weights(update_info)

    client = DamagingClient([handle])
    client.version = "small"
    # Less than the attention's three projections together, so that a layer comes in parts.
    info = SharedMemoryTrainerInitInfo(rank=0, part_bytes=20_000)
    source = ZeroWeightSource(own_weights(model), torch.float32)
    engine = SharedMemoryTrainerEngine.trainer_init(info, client=client, source=source)
    engine.send_weights()
    assert client.count > 10


@on_cpu
def test_weights_that_come_in_many_parts_are_whole(
    engines: Engines, tiny_model: Path, model: PreTrainedModel
) -> None:
    sampler = engines.open(tiny_model)
    ray.get(engines.broker.rename_weights.remote(sampler.lease, "in training"))
    trained = perturbed(model, tiny_model, seed=5)
    send_in_small_parts(trained, sampler.handle, damaged=-1)
    (sample,) = draw(sampler, [1])
    expected = expected_logprobs(trained, sample.prompt_token_ids, sample.token_ids)
    assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)
    sampler.close()


@on_cpu
@pytest.mark.parametrize("recovery", ["load", "send"])
def test_a_damaged_part_is_refused_and_the_engine_takes_whole_weights_again(
    engines: Engines, tiny_model: Path, model: PreTrainedModel, recovery: str
) -> None:
    sampler = engines.open(tiny_model)
    ray.get(engines.broker.rename_weights.remote(sampler.lease, "in training"))
    trained = perturbed(model, tiny_model, seed=3)
    with pytest.raises(RayError, match="the engine reads checksum"):
        send_in_small_parts(trained, sampler.handle, damaged=2)
    if recovery == "send":
        send_in_small_parts(trained, sampler.handle, damaged=-1)
    sampler.close()
    expected_model = trained if recovery == "send" else model
    if recovery == "load":
        sampler = engines.open(tiny_model)
    ids = list(range(40, 80))
    (sample,) = draw(sampler, [1])
    expected = expected_logprobs(expected_model, sample.prompt_token_ids, ids)
    assert score(sampler, ids) == pytest.approx(expected, abs=1e-4)
    if recovery == "load":
        sampler.close()


@on_cpu
def test_trainer_that_died_in_an_update_can_be_replaced(
    engines: Engines, tiny_model: Path, model: PreTrainedModel
) -> None:
    sampler = engines.open(tiny_model)
    ray.get(engines.broker.rename_weights.remote(sampler.lease, "in training"))
    first = sender_of(model, sampler)
    first._client.start_weight_update()
    trained = perturbed(model, tiny_model, seed=4)
    sender_of(trained, sampler).send("9")
    (sample,) = draw(sampler, [1])
    assert sample.weight_versions == (("9", 0),)
    expected = expected_logprobs(trained, sample.prompt_token_ids, sample.token_ids)
    assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)
    sampler.close()


# Rewards


@pytest.mark.slow
def test_rewards_are_the_same_in_serving_and_in_training(
    engines: Engines, tiny_model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    trained = loading.load_preference_model(tiny_model, torch.float32, seed=1)
    with torch.no_grad():
        trained.score.weight.mul_(30)
    trained.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["Yes!", "", "A long answer. " * 12, "A long answer. " * 12 + "No."]
    prompt_ids = chat.encode_exchange("Tea?", "", tokenizer)
    sequences = [chat.encode_exchange("Tea?", text, tokenizer) for text in texts]

    spec = replace(engines.generate, kind="reward", architecture=str(tmp_path))
    sampler = EngineSource(BROKER, spec, str(tmp_path)).open()
    served = [sampler.rewards(sequences), sampler.rewards(sequences)]

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = [float(plain(input_ids=torch.tensor([ids])).logits) for ids in sequences]

    loaded = loading.load_preference_model(tmp_path, torch.float32, seed=2)
    settings = OptimizerSettings(weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False)
    engine = TorchEngine(lambda: loaded, settings, bf16=False)
    group = PromptGroup(
        tuple(prompt_ids), tuple(tuple(ids[len(prompt_ids) :]) for ids in sequences)
    )
    with torch.no_grad():
        packed = group_rewards(engine, [group])[0].tolist()

    assert max(expected) - min(expected) > 0.5
    for found in (*served, packed):
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_engine_that_cannot_start_says_what_can_be_done(engines: Engines, tmp_path: Path) -> None:
    spec = replace(engines.generate, architecture=str(tmp_path))
    message = f"no engine for {tmp_path} could be started: the vLLM engine for {tmp_path} did"
    with pytest.raises(SamplingError, match=rf"^{message} not start(?s:.*)memory_fraction"):
        EngineSource(BROKER, spec, str(tmp_path)).open()


# Leases


class MortalEngine:
    """Waits until four calls are there; the first `num_deaths` engines of a broker then die."""

    def __init__(self, *, is_doomed: bool) -> None:
        self._is_doomed = is_doomed
        self._num_calls = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """A score per request."""
        self._num_calls += 1
        while self._is_doomed:
            await asyncio.sleep(0.01)
            if self._num_calls == 4:
                os._exit(1)
        return [Score(request.request_id, (-1.0,), 5, 0) for request in requests]


class MortalBroker:
    """Hands out engines, the first of which die."""

    def __init__(self, num_deaths: int) -> None:
        self._num_deaths = num_deaths
        self._handles: list[Any] = []
        self.discarded: list[str] = []

    async def claim(self, key: str) -> tuple[str, Any]:
        """The engine at once."""
        return "ready", self._handles[int(key.removeprefix("engine-")) - 1]

    async def acquire(self, spec: EngineSpec, weights: str) -> str:
        """A new engine."""
        is_doomed = len(self._handles) < self._num_deaths
        actor = ray.remote(MortalEngine).options(num_cpus=0, max_concurrency=10)
        self._handles.append(actor.remote(is_doomed=is_doomed))
        return f"engine-{len(self._handles)}"

    async def discard(self, key: str) -> None:
        """Forget an engine."""
        self.discarded.append(key)

    async def discards(self) -> list[str]:
        """The engines that were given up."""
        return self.discarded


def ask_in_four_threads(broker: Any, spec: EngineSpec) -> list[Any]:
    sampler = LeasedSampler(broker, spec, "weights")
    with ThreadPoolExecutor(4) as pool:
        requests = [[ScoreRequest(f"s{number}", OTHER, (5,))] for number in range(4)]
        return [scores[0].request_id for scores in pool.map(sampler.score, requests)]


MakeBroker = Callable[[int], Any]


@pytest.fixture(name="mortal")
def mortal_broker() -> Iterator[MakeBroker]:
    """Makes brokers whose processes need not import this module, which takes ten seconds."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield lambda num_deaths: ray.remote(MortalBroker).options(num_cpus=0).remote(num_deaths)
    cloudpickle.unregister_pickle_by_value(module)


def test_engine_that_dies_is_replaced_once_for_all_threads(
    engines: Engines, mortal: MakeBroker
) -> None:
    broker = mortal(2)
    assert ask_in_four_threads(broker, engines.generate) == ["s0", "s1", "s2", "s3"]
    assert ray.get(broker.discards.remote()) == ["engine-1", "engine-2"]


def test_engines_that_die_one_after_another_are_not_replaced_for_ever(
    engines: Engines, mortal: MakeBroker
) -> None:
    broker = mortal(99)
    with pytest.raises(SamplingError, match="4 engines for weights died one after another"):
        ask_in_four_threads(broker, engines.generate)
    assert len(set(ray.get(broker.discards.remote()))) == 4


class StuckHandle:
    """An engine's handle whose loads never end."""

    def __init__(self) -> None:
        self.ready = self.load = self

    def remote(self, *weights: str) -> Any:
        """At once when asked whether it is ready, never when given weights."""
        return asyncio.sleep(3600.0 if weights else 0.0)


def test_engine_that_never_takes_weights_is_replaced(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    monkeypatch.setattr("charactertrain.runtime.engine_broker._LOAD_SECONDS", 0.05)
    monkeypatch.setattr("ray.kill", killed.append)
    monkeypatch.setattr(
        "charactertrain.runtime.engine_broker.start_engine",
        lambda *_: EngineActor(StuckHandle(), group=None),
    )

    async def lease(broker: EngineBroker, weights: str) -> tuple[str, Any]:
        claim, key, handle = "gone", "", None
        while claim != "ready":
            key = key if claim == "waiting" else await broker.acquire(engines.generate, weights)
            claim, handle = await broker.claim(key)
            await asyncio.sleep(0.01)
        return key, handle

    async def two_leases() -> tuple[Any, Any]:
        broker = EngineBroker(max_engines=1)
        key, first = await lease(broker, "weights")
        await broker.release(key)
        return first, (await lease(broker, "other weights"))[1]

    first, second = asyncio.run(two_leases())
    assert killed == [first]
    assert second is not first


@pytest.mark.slow
def test_engine_whose_own_process_dies_is_replaced(
    sampler: LeasedSampler, model: PreTrainedModel
) -> None:
    lost = engine_of(sampler)
    actor = psutil.Process(ray.get(sampler.handle.__ray_call__.remote(lambda _: os.getpid())))
    for process in actor.children(recursive=True):
        process.kill()
    with pytest.raises(RayActorError):
        ray.get(sampler.handle.start_weight_update.remote())
    (sample,) = draw(sampler, [1])
    assert engine_of(sampler) != lost
    expected = expected_logprobs(model, sample.prompt_token_ids, sample.token_ids)
    assert list(sample.logprobs) == pytest.approx(expected, abs=1e-4)
