"""Plans of whole runs: who has which GPUs, how long it takes, and what does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from charactertrain.config.run import validate
from charactertrain.exceptions import ConfigError
from charactertrain.plan.hours import step_time
from charactertrain.plan.speeds import GIB, device_of

ON_GPUS = ("cluster=ray", "sampler=vllm_gpu", "run.dir=/shared/run")
GPUS = Path(__file__).resolve().parents[2] / "conf" / "plan" / "gpu"
QWEN = (*ON_GPUS, "model=qwen3_8b", "constitution=claude")


@pytest.mark.parametrize("kind", sorted(file.stem for file in GPUS.glob("*.yaml")))
def test_every_kind_of_gpu_can_be_planned_with(composed: Any, kind: str) -> None:
    _, _, section = composed(f"plan/gpu={kind}")
    device = device_of(section.gpu, section)
    # Of kinds that models are trained on: operations for each byte read, and GiB.
    assert 100 < device.operations_per_second / device.memory_bytes_per_second < 500
    assert 40 < device.memory_bytes / GIB < 300


def test_gpus_are_shared_out_and_none_is_left(planned: Any) -> None:
    plan = planned(*QWEN, "plan.num_gpus=8", "deepspeed@policy.deepspeed=zero3_offload")
    layout = plan.layout
    # One engine each for the preference model and the gold one.
    assert layout.reward_engines == 2
    assert layout.policy_engines + layout.reward_engines + layout.workers == 8
    assert layout.engines == 8
    # The run is as the plan says, and a valid one.
    assert plan.config.cluster.num_workers == layout.workers
    assert plan.config.policy.resources.engines == layout.policy_engines
    validate(plan.config.model_dump(mode="json"))


def test_the_division_is_the_one_whose_steps_take_least(planned: Any) -> None:
    plan = planned(*QWEN, "plan.num_gpus=8")
    online = plan.work["policy"].online

    def seconds(engines: int) -> float:
        layout = replace(plan.layout, policy_engines=engines, workers=6 - engines)
        return float(step_time(online, plan.config, layout, plan.speeds).seconds.middle)

    by_engines = {engines: seconds(engines) for engines in range(1, 6)}
    assert min(by_engines, key=by_engines.__getitem__) == plan.layout.policy_engines
    assert len(set(by_engines.values())) > 1


def test_without_a_number_the_settings_are_planned(planned: Any) -> None:
    plan = planned(*QWEN, "cluster.num_workers=[2,6]", "policy.resources.engines=3")
    assert (plan.layout.workers, plan.layout.policy_engines, plan.layout.engines) == (6, 3, 8)
    # Engines of the policy, the preference model and the gold one, and six workers.
    assert plan.gpus["policy"] == 3 + 2 + 6
    assert plan.gpus["responses"] == 8


def test_gpus_that_are_shared_are_not_planned(planned: Any) -> None:
    with pytest.raises(ConfigError, match=r"plan it with placement@policy\.resources=separate"):
        planned(*QWEN, "placement@policy.resources=colocated")


def test_too_few_gpus_and_cpus_are_said(planned: Any) -> None:
    with pytest.raises(ConfigError, match=r"plan\.num_gpus is 3, and the policy needs 4"):
        planned(*QWEN, "plan.num_gpus=3")
    with pytest.raises(ConfigError, match="cluster=ray sampler=vllm_gpu"):
        planned("plan.num_gpus=8")


def test_on_cpus_there_are_tokens_and_no_hours(planned: Any) -> None:
    plan = planned("experiment=demo")
    assert plan.times is None
    assert plan.held is None
    assert plan.work["responses"].tokens_written > 10_000
    assert any("plan.rates" in note for note in plan.notes)


def test_the_state_of_8_billion_parameters_does_not_fit_a_gpu_at_stage_2(planned: Any) -> None:
    plan = planned(*QWEN, "plan.num_gpus=8")
    memory = plan.held.trainers["policy"]
    parameters = 8_190_735_360
    workers = plan.layout.workers
    assert memory.parameters == memory.reference == 2 * parameters
    # The preference model has no output layer.
    scalar = plan.held.trainers["preference_model"]
    assert scalar.parameters == 2 * (parameters - 151_936 * 4096)
    assert memory.optimizer == pytest.approx(12 * parameters / workers)
    problems = "\n".join(plan.held.problems)
    assert "policy: a training worker needs" in problems
    assert "deepspeed@policy.deepspeed=zero3" in problems
    # It does, spread over many at stage 3.
    settings = (
        "deepspeed@policy.deepspeed=zero3",
        "deepspeed@preference_model.deepspeed=zero3",
        "policy.resources.recompute_activations=true",
        "preference_model.resources.recompute_activations=true",
    )
    assert planned(*QWEN, "plan.num_gpus=64", *settings).held.problems == ()


def test_an_engine_whose_weights_leave_no_cache_is_said(planned: Any) -> None:
    plan = planned(*QWEN, "plan.num_gpus=8", "plan.gpu.memory_gib=20")
    assert any("KV cache room for 0 tokens" in problem for problem in plan.held.problems)
    # With the ranks of one that the plan names they do.
    (advice,) = (problem for problem in plan.held.problems if "KV cache" in problem)
    ranks = "sampler.resources.tensor_parallel_size=2", "sampler.resources.gpus_per_engine=2"
    assert all(setting in advice for setting in ranks)
    split = planned(*QWEN, "plan.num_gpus=8", "plan.gpu.memory_gib=20", *ranks)
    assert not any("KV cache" in problem for problem in split.held.problems)
    assert split.config.sampler.resources.tensor_parallel_size == 2
    assert split.gpus["policy"] == 8
    # 0.85 of 79 GiB, less 15.3 of weights and 4 of reserve, by 144 KiB a token.
    whole = planned(*QWEN, "plan.num_gpus=8").held.engine
    weights = 2 * 8_190_735_360
    expected = (0.85 * 79 * GIB - weights - 4 * GIB) / (144 * 1024)
    assert whole.cache_tokens == pytest.approx(expected)


def test_workers_without_a_group_are_said(planned: Any) -> None:
    plan = planned(*QWEN, "cluster.num_workers=48", "preference_model.prompts_per_step=96")
    found = [
        line.partition(" is 32, and of 48 training workers 16 ")[0] for line in plan.held.advice
    ]
    assert "policy.prompts_per_step" in found
    assert "policy.warm_start.prompts_per_step" in found
    assert not any(line.startswith("preference_model") for line in plan.held.advice)


def test_a_preference_model_that_is_slower_than_all_that_sample_is_said(planned: Any) -> None:
    large = (*QWEN, "policy.prompts_per_step=256", "sampler.resources.num_engines=[1,64]")
    few, many = (planned(*large, f"policy.resources.engines={engines}") for engines in (1, 64))
    said = "the preference model's one engine scores them"
    assert not any(said in line for line in few.held.advice)
    assert any(said in line for line in many.held.advice)


def test_more_gpus_take_less_time_and_better_shares_too(planned: Any) -> None:
    def hours(*overrides: str) -> float:
        times = planned(*QWEN, *overrides).times
        return sum(time.seconds.middle for time in times.values())

    assert hours("plan.num_gpus=64") < hours("plan.num_gpus=8")
    assert hours("plan.num_gpus=8", "plan/gpu=h200") < hours("plan.num_gpus=8")
    bounds = planned(*QWEN, "plan.num_gpus=8").times["responses"].seconds
    assert 0 < bounds.low < bounds.high


def test_responses_take_what_the_roofline_says(planned: Any) -> None:
    plan = planned(
        *QWEN,
        "plan.num_gpus=8",
        "plan.decode_share=[1,1]",
        "sampler.resources.max_num_seqs=100",
        "responses.ending=fixed",
        "policy.ending=fixed",
    )
    # All texts have 512 tokens: 8 engines write 100 at a time.
    work, parts = plan.work["responses"], plan.times["responses"].parts
    per_engine = work.tokens_written / 8
    shown = [job.length.shown for job in work.jobs]
    step_seconds = [
        (2 * (8_190_735_360 - 151_936 * 4096) + 100 * (each + 256) * 144 * 1024) / 3350e9
        for each in shown
    ]
    expected = sum(
        job.tokens_written / 8 / 100 * seconds
        for job, seconds in zip(work.jobs, step_seconds, strict=True)
    )
    assert per_engine > 0
    assert parts["writing"].low == parts["writing"].high == pytest.approx(expected)


def test_what_is_read_takes_what_the_roofline_says(planned: Any) -> None:
    settings = ("ranker=contrast", "rankings.second_opinions=[]", "plan.prefill_share=[1,1]")
    plan = planned(*QWEN, "plan.num_gpus=8", *settings)
    # With logits, by 2 operations a parameter; and 4 x 36 x 4,096 for each token attended to,
    # which are those of the cache and half of what is computed.
    operations = sum(
        job.tokens_computed
        * (
            2 * (8_190_735_360 - 151_936 * 4096)
            + 4 * 36 * 4096 * (job.length.common + (job.length.shown - job.length.common) / 2)
        )
        for job in plan.work["rankings"].jobs
    )
    reading = plan.times["rankings"].parts["reading"]
    assert reading.low == reading.high == pytest.approx(operations / 8 / 989e12, rel=1e-3)


def test_measured_rates_take_the_place_of_rooflines(planned: Any, tmp_path: Path) -> None:
    file = tmp_path / "rates.yaml"
    file.write_text(
        "parameters: 16_381_470_720\n"
        "write_tokens_per_second: [500, 1000]\n"
        "read_tokens_per_second: [1000, 1000]\n"
        "train_tokens_per_second: null\n"
    )
    plan = planned(*QWEN, "plan.num_gpus=8", f"plan.rates={file}")
    # Measured with twice the parameters: here twice as fast.
    written = plan.work["responses"].tokens_written / 8
    parts = plan.times["responses"].parts
    assert parts["writing"].low == pytest.approx(written / 2000)
    assert parts["writing"].high == pytest.approx(written / 1000)
    # What was not measured stays as it was.
    roofline = planned(*QWEN, "plan.num_gpus=8").times["preference_model"].parts["training"]
    assert plan.times["preference_model"].parts["training"] == roofline


def test_storage_is_of_weights_and_checkpoints(planned: Any) -> None:
    plan = planned(*QWEN, "plan.num_gpus=8", "preference_model.ensemble=2")
    model = 2 * 8_190_735_360
    # Two and a gold one, without the output layer; the warm start and the policy.
    scalar = model - 2 * 151_936 * 4096
    assert plan.models["preference_model"].left == 3 * scalar
    assert plan.models["preference_model"].passing == 2 * 7 * scalar
    assert plan.models["policy"].left == 2 * model
    # Two checkpoints of 14 bytes a parameter, and two of what may be the best.
    assert plan.models["policy"].passing == 2 * 7 * model + 2 * model
    adapters = planned(*QWEN, "plan.num_gpus=8", "policy.lora={rank: 32, alpha: 64}")
    assert adapters.models["policy"].passing < 5 * model
