"""conf/ and the types behind it: every file composes, every contradiction is said by its key."""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from charactertrain.config import RunConfig, Section, identity, validate
from charactertrain.config import run as run_config
from charactertrain.config.data import MAX_CHECK_PROMPTS, MAX_QUESTIONS
from charactertrain.exceptions import ConfigError
from charactertrain.objectives import preference as objectives
from charactertrain.templates import CHECK_MESSAGES, NUM_QUESTIONS

Json = dict[str, Any]

CONF = Path(__file__).resolve().parent.parent / "conf"
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
MAX_LEAVES = 190
MAX_DEPTH = 4
OBJECTIVES = {
    "grpo": "policy_gradient",
    "centered": "policy_gradient",
    "rloo": "policy_gradient",
    "reinforce": "policy_gradient",
    "cispo": "policy_gradient",
    "gspo": "policy_gradient",
    "policy_gradient": "policy_gradient",
    "dpo": "dpo",
    "best_of_n": "best_of_n",
}
"""Options of the group, and the kind of section that each is."""


# What a choice needs beside it to fit the recipe.
OPTIONS = [
    *((f"model={name}",) for name in ("smollm2_135m", "tiny_random")),
    *((f"model={name}",) for name in ("qwen3_0_6b", "qwen3_8b", "llama3_8b")),
    ("sampler=vllm",),
    ("sampler=vllm_gpu", "cluster.gpus_per_worker=1"),
    ("sampler=fake", "run.until=preference_model"),
    ("cluster=local",),
    ("cluster=ray", "sampler=vllm_gpu", "run.dir=/shared/run"),
    *((f"ranker={name}",) for name in ("auto", "contrast", "judge", "judge_listwise")),
    *((f"ranker={name}",) for name in ("rating", "ensemble")),
    *((f"objective={name}",) for name in OBJECTIVES),
    *(
        (f"deepspeed@{stage}.deepspeed={name}",)
        for stage in ("preference_model", "policy")
        for name in ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
    ),
    ("placement@policy.resources=separate",),
    ("placement@policy.resources=colocated", "sampler=vllm_gpu", "cluster.gpus_per_worker=1"),
]


def leaves(values: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value that is no mapping, with the keys that lead to it."""
    if not isinstance(values, dict):
        yield path, values
        return
    for key, value in values.items():
        yield from leaves(value, (*path, str(key)))


def changed(values: Json, settings: Json) -> Json:
    """A copy of a composed config with settings given by their dotted keys."""
    values = deepcopy(values)
    for key, value in settings.items():
        *path, last = key.split(".")
        section = values
        for name in path:
            section = section[name]
        section[last] = value
    return values


def said_about(values: Json) -> str:
    """What is said about a config that is not valid: one line per problem."""
    with pytest.raises(ConfigError) as caught:
        validate(values)
    first, *problems = str(caught.value).splitlines()
    assert first == "the configuration is not valid:"
    assert len(problems) == 1, "expected one problem"
    return problems[0].strip()


@pytest.fixture(name="recipe", scope="module")
def composed_recipe(compose: Any) -> Json:
    """conf/config.yaml with its default options, as a mapping; not to be changed."""
    values: Json = compose()
    return values


def test_the_recipe_is_valid_as_it_stands(recipe: Json) -> None:
    config = validate(recipe)
    assert config.model.path.startswith("embedded:")
    assert config.run.dry is False


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_and_validates(compose: Any, name: str) -> None:
    validate(compose(f"experiment={name}"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_wins_over_the_recipe(compose: Any, recipe: Json, name: str) -> None:
    written = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    written.pop("defaults", None)
    composed = dict(leaves(compose(f"experiment={name}")))
    asked = dict(leaves(written))
    assert {path: composed[path] for path in asked} == asked
    plain = dict(leaves(recipe))
    assert any(plain[path] != value for path, value in asked.items())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_command_line_wins_over_an_experiment(compose: Any, name: str) -> None:
    composed = compose(f"experiment={name}", "policy.num_steps=77", "objective=rloo")
    assert composed["policy"]["num_steps"] == 77
    assert composed["policy"]["objective"]["advantages"] == "rloo"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_opens_with_the_question_that_it_answers(name: str) -> None:
    package, question = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[:2]
    assert package == "# @package _global_"
    assert question.startswith("# ")
    assert question.endswith("?")


@pytest.mark.parametrize("overrides", OPTIONS, ids=" ".join)
def test_option_composes_and_validates(compose: Any, overrides: tuple[str, ...]) -> None:
    validate(compose(*overrides))


def test_every_option_of_every_group_is_tried() -> None:
    # Not of a run: tests/plan composes it.
    own = {("plan", "sizing"), *(("experiment", name) for name in EXPERIMENTS)}
    shipped = {(file.parent.name, file.stem) for file in CONF.glob("*/*.yaml")} - own
    tried = {
        (choice.partition("=")[0].partition("@")[0], choice.partition("=")[2])
        for choice, *_ in OPTIONS
    }
    assert tried == shipped


def test_options_take_effect_where_they_belong(compose: Any) -> None:
    config = validate(
        compose(
            "ranker=judge",
            "objective=rloo",
            "deepspeed@preference_model.deepspeed=zero0",
            "deepspeed@policy.deepspeed=zero3_offload",
            "model=tiny_random",
            "sampler=fake",
            "run.until=pairs",
        )
    )
    assert config.rankings.ranker == "judge"
    assert config.policy.objective.advantages == "rloo"  # type: ignore[union-attr]
    assert config.preference_model.deepspeed.stage == 0
    assert (config.policy.deepspeed.stage, config.policy.deepspeed.offload) == (3, True)
    assert config.model.name == "tiny_random"
    assert config.sampler.kind == "fake"


def test_the_config_stays_small(recipe: Json) -> None:
    paths = [path for path, _ in leaves(recipe)]
    assert len(paths) <= MAX_LEAVES
    assert max(len(path) for path in paths) <= MAX_DEPTH


def sections() -> list[type[Section]]:
    found, waiting = [], [Section]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        found += subclasses
        waiting += subclasses
    return found


def test_no_field_has_a_default() -> None:
    assert RunConfig in sections()
    optional = [
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if not field.is_required()
    ]
    assert optional == []


def test_every_setting_is_needed(recipe: Json) -> None:
    for path, _ in leaves(recipe):
        if path[:2] in {("responses", "variants"), ("prompts", "kinds")}:
            continue
        values = deepcopy(recipe)
        section = values
        for key in path[:-1]:
            section = section[key]
        del section[path[-1]]
        assert said_about(values).startswith(f"{'.'.join(path)}: Field required")


@pytest.mark.parametrize("section", ["policy", "preference_model"])
def test_adapters_have_a_rank_and_its_factor(recipe: Json, section: str) -> None:
    given = {"rank": 8, "alpha": 16}
    config = validate(changed(recipe, {f"{section}.lora": given}))
    assert getattr(config, section).lora.model_dump() == given
    said = said_about(changed(recipe, {f"{section}.lora": given | {"rank": 0}}))
    assert said == f"{section}.lora.rank: Input should be greater than 0 (found 0)"
    said = said_about(changed(recipe, {f"{section}.lora": {"rank": 8}}))
    assert said.startswith(f"{section}.lora.alpha: Field required")


def test_the_config_is_frozen(smoke_config: RunConfig) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        smoke_config.policy.num_steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("polcy", "polcy: Extra inputs are not permitted (found 3)"),
        ("policy.steps", "policy.steps: Extra inputs are not permitted (found 3)"),
        ("policy.objective.beta", "policy.objective.beta: Extra inputs are not permitted"),
        ("sampler.resources.gpus", "sampler.resources.gpus: Extra inputs are not permitted"),
    ],
)
def test_unknown_key_is_refused_with_its_path(recipe: Json, key: str, expected: str) -> None:
    assert said_about(changed(recipe, {key: 3})).startswith(expected)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("policy.objective.clip_low", 1.5, r".* less than or equal to 1 \(found 1\.5\)"),
        ("policy.num_steps", 0, r".* greater than 0 \(found 0\)"),
        ("policy.group_size", 1, r".* greater than or equal to 2 \(found 1\)"),
        ("policy.num_steps", "many", r".* valid integer.*\(found 'many'\)"),
        ("policy.learning_rate", -1, r".* greater than 0"),
        ("policy.deepspeed.stage", 4, r".* 0, 1, 2 or 3 \(found 4\)"),
        ("prompts.check_prompts", 17, r".* less than or equal to 16 \(found 17\)"),
        ("prompts.test_share", 1.2, r".* less than or equal to 1"),
        ("pairs.min_probability", 0.4, r".* greater than or equal to 0\.5"),
        ("rankings.ranker", "coin", r".* 'contrast' or 'rating' \(found 'coin'\)"),
        ("rankings.num_questions", 4, r".* less than or equal to 3 \(found 4\)"),
        ("rankings.orders", "first", r"Input should be 'both' or 'random' \(found 'first'\)"),
        ("model.messages_per_call", 0, r".* greater than or equal to 1 \(found 0\)"),
        ("model.messages_per_call", 21, r".* less than or equal to 20 \(found 21\)"),
        ("responses.per_prompt", 1, r".* greater than or equal to 2 \(found 1\)"),
        ("responses.per_prompt", 27, r".* less than or equal to 26 \(found 27\)"),
        ("prompts.facets_per_trait", 2, r".* greater than or equal to 3 \(found 2\)"),
        ("prompts.languages", [], r".* at least 1 item.*"),
        ("prompts.max_top_ups", -1, r".* greater than or equal to 0 \(found -1\)"),
        ("prompts.file_use", "append", r"Input should be 'join' or 'replace'"),
        ("pairs.file_use", "append", r"Input should be 'join' or 'replace'"),
        ("pairs.validation_share", 1, r".* less than 1 \(found 1\)"),
        ("sampler.kind", "openai", r"Input should be 'vllm' or 'fake'"),
        ("sampler.resources.num_engines", [1, 2, 3], r".* at most 2 items"),
        ("policy.watch.every", -1, r".* greater than or equal to 0 \(found -1\)"),
        ("policy.watch.prompts", 1, r".* greater than or equal to 2 \(found 1\)"),
        ("policy.watch.patience", 0, r".* greater than 0 \(found 0\)"),
        ("policy.watch.entropy_floor", 1, r".* less than 1 \(found 1\)"),
        ("policy.watch.distinct_floor", -0.1, r".* greater than or equal to 0 \(found -0\.1\)"),
        ("cluster.node_group", "GPU nodes", r"String should match pattern .*'GPU nodes'"),
        ("seed", None, r".* valid integer \(found None\)"),
        ("logging.wandb", "on", r"Input should be 'off', 'offline' or 'online'"),
        ("logging.project", "", r"String should have at least 1 character"),
        ("logging.group", "g" * 129, r"String should have at most 128 characters"),
    ],
)
def test_a_value_out_of_range_is_named_and_shown(
    recipe: Json, key: str, value: object, expected: str
) -> None:
    assert re.match(f"{key}: {expected}", said_about(changed(recipe, {key: value})))


@pytest.mark.parametrize(
    ("band", "end", "expected"),
    [
        ([1.0, 2.0], 0, "Input should be less than 1 (found 1.0)"),
        ([0.5, 1.0], 1, "Input should be greater than 1 (found 1.0)"),
        ([0.5], 1, "Field required (found [0.5])"),
    ],
)
def test_a_band_of_lengths_holds_the_first_reading(
    recipe: Json, band: list[float], end: int, expected: str
) -> None:
    said = said_about(changed(recipe, {"policy.watch.length_band": band}))
    assert said == f"policy.watch.length_band.{end}: {expected}"


def test_no_readings_are_asked_for_by_zero(recipe: Json) -> None:
    assert validate(changed(recipe, {"policy.watch.every": 0})).policy.watch.every == 0


def test_an_unknown_variant_is_named(recipe: Json) -> None:
    said = said_about(changed(recipe, {"responses.variants.bold": 1}))
    assert re.match(r"responses\.variants\.bold\b.* 'none', 'mild' or 'strong'", said)


def test_an_unknown_kind_of_message_and_a_negative_weight_are_named(recipe: Json) -> None:
    said = said_about(changed(recipe, {"prompts.kinds.gossip": 1}))
    assert re.match(r"prompts\.kinds\.gossip\b.* 'everyday' or 'general'", said)
    said = said_about(changed(recipe, {"prompts.kinds.values": -1}))
    assert said == ("prompts.kinds.values: Input should be greater than or equal to 0 (found -1)")


@pytest.mark.parametrize("field", ["ensemble", "second_opinions"])
def test_an_unknown_ranker_of_a_list_is_named(recipe: Json, field: str) -> None:
    # Neither can hold an ensemble, which is made of the others.
    for name in ("coin", "ensemble"):
        said = said_about(changed(recipe, {f"rankings.{field}": ["judge", name]}))
        assert re.match(rf"rankings\.{field}\.1: .*\(found '{name}'\)", said)


ENDPOINT = {
    "base_url": "http://judge.example/v1",
    "model": "large",
    "api_key_variable": None,
    "max_in_flight": 8,
    "timeout_seconds": 60,
    "max_retries": 3,
}
LATENCY = {
    "prefill_tokens_per_second": 1000,
    "seconds_per_step": 0.01,
    "seconds_per_sequence": 0.001,
}


def colocated(**changes: object) -> dict[str, object]:
    """Engines of the policy on the workers' GPUs, with changes to how."""
    how = {"memory_fraction": 0.35, "reward_memory_fraction": 0.1, "sleep": False}
    gpus = {"cluster.gpus_per_worker": 1, "sampler.resources.gpus_per_engine": 1}
    return {**gpus, "policy.resources.colocated": how | changes}


NO_JUDGE = "rankings: ranker is contrast, which asks no judge; leave out judge_model and endpoint"

WITHOUT_KL = (
    "a policy with no KL to the reference drifts into hacks of its reward; ask for it by setting "
    "both coef=0 and without=true"
)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"preference_model.general_share": 0.1},
            "preference_model.general_share is 0.1, and general comparisons come from pairs.file "
            "alone, which is null; name a file, or give 0",
        ),
        (
            {"cluster.num_workers": [3, 2]},
            "cluster.num_workers is (3, 2); give (fewest, most)",
        ),
        (
            {"preference_model.objective": "plackett_luce", "responses.per_prompt": 12},
            "preference_model.objective plackett_luce sums over all subsets of a prompt's "
            "responses, of which responses.per_prompt asks for 12; give 10 at most, or objective "
            "bradley_terry",
        ),
        (
            {"preference_model.objective": "plackett_luce", "preference_model.margin": 0.5},
            "preference_model: margin is 0.5, and objective plackett_luce compares whole rankings; "
            "give margin 0, or objective bradley_terry",
        ),
        (
            {"responses.ending": "fixed"},
            "responses.ending is fixed and policy.ending is natural: the policy would be trained "
            "on responses that end otherwise than those it was prepared for; give both the same",
        ),
        (
            {"sampler.kind": "fake"},
            "sampler.kind is fake, and the policy stage needs engines that take new weights; use "
            "sampler=vllm, or stop before it with run.until=preference_model",
        ),
        (
            colocated() | {"cluster.gpus_per_worker": 2},
            "policy.resources.colocated: each engine shares one GPU with one worker, and "
            "cluster.gpus_per_worker is 2 and sampler.resources.tensor_parallel_size 1; give 1 and "
            "1, or colocated=null",
        ),
        (
            colocated()
            | {"sampler.resources.tensor_parallel_size": 2, "sampler.resources.gpus_per_engine": 2},
            "policy.resources.colocated: each engine shares one GPU with one worker, and "
            "cluster.gpus_per_worker is 1 and sampler.resources.tensor_parallel_size 2; give 1 and "
            "1, or colocated=null",
        ),
        (
            colocated() | {"policy.resources.engines": 2, "sampler.resources.num_engines": (1, 2)},
            "policy.resources.colocated: policy.resources.engines is 2, each on the GPU of one of "
            "cluster.num_workers=1; give 1 at most",
        ),
        (
            colocated(memory_fraction=0.8),
            "policy.resources.colocated: an engine of 0.8 and 2 of 0.1 take 1 of a GPU, which "
            "leaves its training worker nothing; lower the fractions",
        ),
        (
            colocated(sleep=True) | {"policy.max_staleness": 1},
            "policy.resources.colocated.sleep is true, and engines that write ahead of the step "
            "never rest: policy.max_staleness is 1 and policy.objective.kind policy_gradient; give "
            "max_staleness 0 and a policy gradient, or sleep false",
        ),
        (
            {"cluster.gpus_per_worker": 1},
            "cluster.gpus_per_worker is 1.0 and sampler.resources.gpus_per_engine is 0.0: weights "
            "go from workers to engines of the same kind of device; give both GPUs "
            "(sampler=vllm_gpu and cluster.gpus_per_worker=1) or neither",
        ),
        (
            {"cluster.address": "auto", "run.dir": "s3://bucket/run"},
            "run.dir is a URI (s3://...), and engines and workers on other nodes need the "
            "models in it as files; give an absolute path on storage that all nodes share",
        ),
        (
            {"cluster.node_group": "trainers"},
            "cluster.node_group is trainers, and cluster.address local is one node without a "
            "group; use cluster=ray, or null",
        ),
        (
            {"sampler.resources.node_group": "samplers"},
            "sampler.resources.node_group is samplers, and cluster.address local is one node "
            "without a group; use cluster=ray, or null",
        ),
        (
            {"sampler.resources.num_engines": [3, 1]},
            "sampler.resources.num_engines is (3, 1); give (fewest, most)",
        ),
        (
            {"cluster.num_cpus": 4, "cluster.num_workers": 4, "cluster.cpus_per_worker": 2},
            "cluster: 4 workers of 2 CPUs and 3 engines of 1 beside them need 11, and "
            "cluster.num_cpus is 4; raise it, or give null",
        ),
        (
            {"sampler.resources.gpus_per_engine": 1, "sampler.resources.tensor_parallel_size": 2}
            | {"cluster.gpus_per_worker": 1, "run.until": "pairs"},
            "sampler.resources: gpus_per_engine 1.0 and tensor_parallel_size 2 differ; an engine "
            "takes one GPU per tensor-parallel rank",
        ),
        (
            {"cluster.address": "auto", "run.dir": "runs/mine"},
            "run.dir 'runs/mine' is relative, and on a cluster it would resolve inside each job's "
            "own working directory; give an absolute path that all nodes share",
        ),
        (
            {"policy.kl.coef": 0},
            "policy.kl: coef is 0.0 and without is False: " + WITHOUT_KL,
        ),
        (
            {"policy.kl.without": True},
            "policy.kl: coef is 0.05 and without is True: " + WITHOUT_KL,
        ),
        (
            {"policy.kl.coef": 0, "policy.kl.without": True, "policy.kl.target": 0.1},
            "policy.kl: target is 0.1, and there is no KL to steer: give null",
        ),
        (
            {"policy.kl.estimator": "k1"},
            "policy.kl: estimator k1 has no gradient in the loss (its expectation is 0): use k2, "
            "whose gradient is that of the KL, or place=reward",
        ),
        (
            {"policy.objective.loss": "cispo", "policy.objective.dual_clip": 3.0},
            "policy.objective: dual_clip is of loss clipped, and loss is cispo; give null",
        ),
        (
            {"policy.objective.baseline_decay": 0.9},
            "policy.objective: baseline_decay is 0.9, and advantages are grpo: reinforce needs "
            "one, such as 0.95, and the others take none; give null",
        ),
        (
            {"policy.general_share": 0.2},
            "policy.general_share is 0.2, and no general prompts are written: give "
            "prompts.kinds.general a weight, or general_share 0",
        ),
        (
            {"policy.resources.engines": 2},
            "policy.resources.engines is 2, and sampler.resources.num_engines allows 1; raise the "
            "one or lower the other",
        ),
        (
            {"prompts.test_share": 0.5, "prompts.validation_share": 0.5},
            "prompts: validation_share + test_share must leave a share for training",
        ),
        (
            {"prompts.min_words": 9, "prompts.max_words": 8},
            "prompts: min_words 9 exceeds max_words 8",
        ),
        (
            {"evaluation.length_prompts": 1},
            "evaluation: length_prompts is 1, and an interval needs 2; give 0 to leave it out",
        ),
        (
            {"evaluation.attribution_prompts": 1},
            "evaluation: attribution_prompts is 1, and an interval needs 2; give 0 to leave it out",
        ),
        (
            {"evaluation.probes.names": ["dose", "harmless", "dose"]},
            "evaluation.probes: names has dose twice; name each probe once",
        ),
        (
            {"evaluation.preferences.pairs_per_trait": 1},
            "evaluation.preferences: pairs_per_trait is 1, and an order needs three words; give 2, "
            "or 0 for none",
        ),
        (
            {"rankings.min_judge_accuracy": 0.6, "rankings.min_accuracy": 0.65},
            "rankings: min_judge_accuracy 0.6 is below min_accuracy 0.65: ranker=auto would take a "
            "judge that is then refused",
        ),
        (
            {"rankings.judge_model": "some/judge", "rankings.endpoint": ENDPOINT},
            "rankings: judge_model and endpoint are both given; give one judge",
        ),
        ({"rankings.ranker": "contrast", "rankings.judge_model": "some/judge"}, NO_JUDGE),
        ({"rankings.ranker": "contrast", "rankings.endpoint": ENDPOINT}, NO_JUDGE),
        (
            {"rankings.ranker": "ensemble", "rankings.ensemble": ["judge"]},
            "rankings: ensemble is ['judge']; give two rankers or more",
        ),
        (
            {"rankings.ranker": "ensemble", "rankings.ensemble": ["judge", "judge"]},
            "rankings: ensemble is ['judge', 'judge']; give two rankers or more",
        ),
        (
            {"sampler.latency": LATENCY},
            "sampler: latency is the fake sampler's, and kind is vllm; give latency=null",
        ),
        (
            {"model.messages_per_call": 5},
            "model: messages_per_call is 5, and a completion writes one; give 1, or "
            "prompt_synthesis=chat",
        ),
        (
            {"prompts.kinds": {"values": 1, "trait": 0}},
            "prompts: kinds: the weight of kind trait must be above 0",
        ),
        (
            {"prompts.kinds": {"values": 1}},
            "prompts: kinds: the weight of kind trait must be above 0",
        ),
        (
            {"logging.upload": ["policy"]},
            "logging.upload is ['policy'], and logging.wandb is off: nothing is sent; give [], or "
            "wandb offline or online",
        ),
        (
            {
                "logging.upload": ["policy"],
                "logging.wandb": "online",
                "run.dir": "s3://bucket/run",
            },
            "logging.upload is ['policy'], and run.dir is a URI (s3://...): wandb sends files that "
            "are on this machine; give [], which tells it where they are",
        ),
        (
            {"prompts.file_use": "replace"},
            "prompts: file_use is replace and file is null; name the file of prompts",
        ),
        (
            {"pairs.file_use": "replace"},
            "pairs: file_use is replace and file is null; name the file of pairs",
        ),
        (
            {"responses.variants": {"none": 1, "mild": 3}},
            "responses: per_prompt is 6 and variants have 4 parts; give as many candidates as "
            "parts, or a multiple of them",
        ),
        (
            {"responses.variants": {"none": 0}},
            "responses: per_prompt is 6 and variants have 0 parts; give as many candidates as "
            "parts, or a multiple of them",
        ),
        (
            {"pairs.file": "own.jsonl", "pairs.file_use": "replace", "pairs.reviews": "reviews"},
            "pairs: reviews are of rankings, whose pairs file_use=replace leaves out; give "
            "reviews=null, or file_use=join",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_contradiction_is_one_message_that_names_its_keys(
    recipe: Json, settings: Json, expected: str
) -> None:
    assert said_about(changed(recipe, settings)) == expected


@pytest.mark.parametrize(
    "key",
    [
        "prompts.max_tokens",
        "responses.max_tokens",
        "policy.max_tokens",
        "evaluation.max_tokens",
        "evaluation.probes.max_tokens",
        "evaluation.length_max_tokens",
        "evaluation.preferences.max_tokens",
    ],
)
def test_a_length_that_leaves_no_room_for_a_prompt_is_named(recipe: Json, key: str) -> None:
    used = {
        "evaluation.length_prompts": 2,
        "evaluation.length_max_tokens": 1023,
        "evaluation.preferences.pairs_per_trait": 2,
    }
    validate(changed(recipe, used | {key: 1023}))
    assert said_about(changed(recipe, used | {key: 1024})) == (
        f"{key} is 1024 tokens and leaves no room for a prompt in model.context_tokens 1024; "
        "lower the one or raise the other"
    )


def test_a_length_that_is_not_used_need_not_fit(recipe: Json) -> None:
    settings = {"evaluation.length_prompts": 0, "evaluation.length_max_tokens": 9999}
    assert validate(changed(recipe, settings)).evaluation.length_max_tokens == 9999


@pytest.mark.parametrize(("name", "kind"), OBJECTIVES.items())
def test_every_objective_goes_with_every_experiment(
    compose: Callable[..., Json], name: str, kind: str
) -> None:
    for experiment in ("demo", "smoke", "[demo,neutral]", "[demo,placebo]"):
        if name == "dpo" and "placebo" in experiment:
            continue
        values = compose(f"objective={name}", f"experiment={experiment}")
        assert validate(values).policy.objective.kind == kind


# The controls.


@pytest.mark.parametrize("beside", ["demo", "smoke"])
def test_a_control_differs_from_its_run_by_what_it_controls_for(
    compose: Callable[..., Json], beside: str
) -> None:
    def settings(*names: str) -> Json:
        return dict(leaves(compose(f"experiment=[{','.join(names)}]")))

    plain, neutral, placebo = (
        settings(beside),
        settings(beside, "neutral"),
        settings(beside, "placebo"),
    )
    assert plain.keys() == neutral.keys() == placebo.keys()
    gates = {("policy", "despite_gates")}
    changed_neutral = {path for path, value in neutral.items() if plain[path] != value}
    assert changed_neutral - gates == {
        ("model", "traits_shown"),
        ("rankings", "ranker"),
        ("rankings", "second_opinions"),
        ("responses", "variants", "mild"),
        ("responses", "variants", "strong"),
    }
    changed_placebo = {path for path, value in placebo.items() if plain[path] != value}
    assert changed_placebo - gates == {
        ("preference_model", "labels"),
        ("policy", "warm_start", "epochs"),
    }


@pytest.mark.parametrize(
    ("experiment", "control", "counts"),
    [
        ("demo", None, {"none": 1, "mild": 1, "strong": 1}),
        ("neutral", "neutral", {"none": 6, "mild": 0, "strong": 0}),
        ("[smoke,neutral]", "neutral", {"none": 3, "mild": 0, "strong": 0}),
        ("placebo", "placebo", {"none": 1, "mild": 2, "strong": 3}),
    ],
)
def test_a_run_knows_which_control_it_is_and_has_as_many_candidates(
    compose: Callable[..., Json], experiment: str, control: str | None, counts: Json
) -> None:
    config = validate(compose(f"experiment={experiment}"))
    assert config.control == control
    assert config.responses.num_by_variant == counts
    assert config.policy.despite_gates


def test_the_neutral_control_takes_another_judge(compose: Callable[..., Json]) -> None:
    for ranker in ("judge", "judge_listwise", "rating"):
        config = validate(compose("experiment=[demo,neutral]", f"ranker={ranker}"))
        assert config.rankings.ranker == ranker
    given = {"rankings.ranker": "ensemble", "rankings.ensemble": ["judge", "rating"]}
    validate(changed(compose("experiment=neutral"), given))


@pytest.mark.parametrize(
    ("experiment", "settings", "expected"),
    [
        (
            "neutral",
            {"responses.variants": {"none": 1, "mild": 2, "strong": 3}},
            "model.traits_shown is none, and responses.variants asks for mild and strong, which "
            "show the character; give responses.variants={none: 1, mild: 0, strong: 0}",
        ),
        *(
            (
                "neutral",
                {"rankings.ranker": ranker},
                f"model.traits_shown is none, and rankings.ranker {ranker} compares with and "
                "without the character; use ranker=judge or ranker=rating",
            )
            for ranker in ("auto", "contrast", "ensemble")
        ),
        (
            "neutral",
            {"rankings.second_opinions": ["rating", "contrast"]},
            "model.traits_shown is none, and contrast, which compares with and without the "
            "character, is of rankings.second_opinions; leave it out",
        ),
        (
            "placebo",
            {"policy.warm_start.epochs": 1},
            "preference_model.labels is shuffled, and policy.warm_start trains on responses that "
            "were written with the character shown; give policy.warm_start.epochs=0",
        ),
        (
            "[placebo,neutral]",
            {},
            "model.traits_shown is none and preference_model.labels is shuffled: a run is one "
            "control at a time, the neutral one or the placebo",
        ),
    ],
)
def test_what_would_undo_a_control_is_refused(
    compose: Callable[..., Json], experiment: str, settings: Json, expected: str
) -> None:
    assert said_about(changed(compose(f"experiment={experiment}"), settings)) == expected


def test_a_placebo_follows_the_preference_model(compose: Callable[..., Json]) -> None:
    said = said_about(compose("experiment=placebo", "objective=dpo"))
    assert said == (
        "preference_model.labels is shuffled, and policy.objective dpo learns from the pairs as "
        "they were ranked; use an objective that follows the preference model"
    )


def test_labels_may_be_shuffled_up_to_the_preference_model(recipe: Json) -> None:
    asked = {"preference_model.labels": "shuffled", "run.until": "preference_model"}
    assert validate(changed(recipe, asked)).control == "placebo"


def test_a_policy_without_kl_is_asked_for_by_name(recipe: Json) -> None:
    settings = {"policy.kl.coef": 0, "policy.kl.without": True}
    assert validate(changed(recipe, settings)).policy.kl.coef == 0


def test_worked_lines_are_english(recipe: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.languages is \['de'\].*English"):
        validate(changed(recipe, {"prompts.languages": ["de"]}))


@pytest.mark.parametrize("codes", [["en", "xx"], ["English"], ["en", "de", "en"]])
def test_languages_are_different_codes_that_are_known(recipe: Json, codes: list[str]) -> None:
    said = said_about(changed(recipe, {"prompts.languages": codes}))
    assert said.startswith(f"prompts: languages {codes}: expected different ISO 639-1 codes out of")
    assert "en, " in said
    chat = {"model.prompt_synthesis": "chat", "prompts.languages": ["en", "de"]}
    known = validate(changed(recipe, chat))
    assert known.prompts.languages == ("en", "de")


def test_weights_of_kinds_become_shares(recipe: Json) -> None:
    kinds = {"trait": 3, "values": 0, "general": 1}
    found = validate(changed(recipe, {"prompts.kinds": kinds})).prompts
    assert found.kind_shares == {"trait": 0.75, "general": 0.25}


@pytest.mark.parametrize(
    "settings",
    [
        {"rankings.judge_model": "some/judge"},
        {"rankings.endpoint": ENDPOINT},
        {"rankings.ranker": "contrast", "rankings.ensemble": []},
        {"rankings.ranker": "ensemble", "rankings.ensemble": ["judge", "rating"]},
        {"sampler.kind": "fake", "sampler.latency": LATENCY, "run.until": "pairs"},
        {"model.prompt_synthesis": "chat", "model.messages_per_call": 5},
        {"prompts.file": "mine.jsonl", "prompts.file_use": "replace"},
        {"pairs.file": "mine.jsonl", "pairs.file_use": "replace"},
        {"pairs.file": "mine.jsonl", "pairs.reviews": "runs/first/reviews"},
        {"prompts.kinds": {"trait": 1}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_fit_together_are_taken(recipe: Json, settings: Json) -> None:
    found = dict(leaves(validate(changed(recipe, settings)).model_dump(mode="json")))
    asked = {
        (*key.split("."), *path): value
        for key, values in settings.items()
        for path, value in leaves(values)
    }
    assert {path: found[path] for path in asked} == asked


@pytest.mark.parametrize(
    "settings",
    [
        {"policy.num_steps": 0, "seed": -1, "colour": "red"},
        {"policy.max_tokens": 2000, "cluster.num_workers": [2, 1]}
        | {"sampler.resources.num_engines": [2, 1]},
    ],
    ids=["fields", "contradictions"],
)
def test_all_problems_are_listed(recipe: Json, settings: Json) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(changed(recipe, settings))
    assert len(str(caught.value).splitlines()) == 1 + 3


def test_there_are_as_many_check_messages_as_may_be_asked_for() -> None:
    assert len(CHECK_MESSAGES) == MAX_CHECK_PROMPTS


def test_there_are_as_many_wordings_as_may_be_asked_for() -> None:
    assert NUM_QUESTIONS == MAX_QUESTIONS


def test_identity_of_an_endpoint_is_its_model_alone(recipe: Json) -> None:
    def rankings(**changes: object) -> Json:
        asked = {"rankings.endpoint": ENDPOINT | changes}
        return identity(validate(changed(recipe, asked)).rankings)

    assert rankings()["endpoint"] == {"model": "large"}
    moved = {"base_url": "https://other/v1", "api_key_variable": "KEY", "max_in_flight": 1}
    assert rankings(**moved, timeout_seconds=1, max_retries=0) == rankings()
    assert rankings(model="small") != rankings()


@pytest.mark.parametrize(
    "url",
    [
        "judge.example/v1",
        "ftp://judge.example/v1",
        "https:///v1",
        "https://me:secret@judge.example/v1",
        "https://secret@judge.example/v1",
        "https://judge.example/v1?key=secret",
        "https://judge.example/v1#secret",
    ],
)
def test_an_endpoint_is_a_plain_url_and_is_not_shown_if_it_is_not(recipe: Json, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(changed(recipe, {"rankings.endpoint": ENDPOINT | {"base_url": url}}))
    said = str(caught.value)
    assert "rankings.endpoint" in said
    assert "base_url must be http://host/... or https://host/..." in said
    assert "secret" not in said


def test_identity_leaves_out_files_that_stages_name_by_their_contents(recipe: Json) -> None:
    settings = {"prompts.file": "mine.jsonl", "rankings.judge_model": "some/judge"}
    settings |= {"pairs.file": "own.parquet"}
    plain, moved = validate(recipe), validate(changed(recipe, settings))
    assert identity(moved.prompts) == identity(plain.prompts)
    assert identity(moved.rankings) == identity(plain.rankings)
    assert identity(moved.pairs) == identity(plain.pairs)
    for section in ("prompts", "pairs"):
        alone = validate(changed(recipe, settings | {f"{section}.file_use": "replace"}))
        assert identity(getattr(alone, section)) != identity(getattr(plain, section))


def test_identity_leaves_out_how_a_stage_runs(smoke_config: RunConfig) -> None:
    found = identity(smoke_config.policy)
    assert found["num_steps"] == 2
    assert found["kl"]["coef"] == 0.05
    assert found["warm_start"]["epochs"] == 1
    keys = {key for path, _ in leaves(found) for key in path}
    assert keys.isdisjoint({"resources", "deepspeed", "tokens_per_microbatch", "stage", "offload"})
    left_out = {"resources", "deepspeed", "sync_tolerance", "despite_gates"}
    assert set(found) == set(type(smoke_config.policy).model_fields) - left_out


GATES = {
    "prompts": {"min_accepted_share": 0.01, "min_trait_shift": 0.01},
    "responses": {"max_reject_share": 0.01},
    "rankings": {"min_accuracy": 0.01},
    "policy": {"sync_tolerance": 0.01},
}


def test_gates_that_change_no_row_are_no_identity_and_stay_in_the_config(recipe: Json) -> None:
    gates = {f"{name}.{key}": 0.01 for name, values in GATES.items() for key in values}
    plain, moved = validate(recipe), validate(changed(recipe, gates))
    for name, values in GATES.items():
        section = getattr(moved, name)
        assert identity(section) == identity(getattr(plain, name))
        assert values.items() <= section.model_dump().items()
    stricter = validate(changed(recipe, {"preference_model.gates.worst_trait_accuracy": 0.9}))
    assert identity(stricter.preference_model) == identity(plain.preference_model)
    told = validate(changed(recipe, {"policy.despite_gates": True}))
    assert identity(told.policy) == identity(plain.policy)
    # It decides where training stops, and which weights are kept.
    watched = validate(changed(recipe, {"policy.watch.patience": 9}))
    assert identity(watched.policy) != identity(plain.policy)
    # This one picks the ranker.
    judged = validate(changed(recipe, {"rankings.min_judge_accuracy": 0.9}))
    assert identity(judged.rankings) != identity(plain.rankings)


def test_longest_list_is_that_of_the_loss() -> None:
    assert run_config.MAX_LIST == objectives.MAX_LIST


def test_identity_changes_with_results_and_not_with_resources(recipe: Json) -> None:
    moved = {"policy.deepspeed.stage": 3, "policy.resources.tokens_per_microbatch": 2}
    other = {"policy.warm_start.learning_rate": 0.5}
    plain = identity(validate(recipe).policy)
    assert identity(validate(changed(recipe, moved)).policy) == plain
    assert identity(validate(changed(recipe, other)).policy) != plain
