"""How many replies an evaluation samples, counted by hand, and held against what is asked."""

from typing import Any

from charactertrain.config import RunConfig
from charactertrain.records import Prompt
from charactertrain.stages.evaluation import probe_scripts
from charactertrain.stages.evaluation.size import replies_at_most


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    section = config.evaluation
    changes = {
        name: getattr(section, name).model_copy(update=values) for name, values in sections.items()
    }
    return config.model_copy(update={"evaluation": section.model_copy(update=changes)})


def test_replies_are_counted_by_what_they_are_for(smoke_config: RunConfig) -> None:
    assert replies_at_most(smoke_config, ["honest"], num_tested=5, num_general=1) == {
        # Three arms, two responses each.
        "on held-out prompts": 3 * 5 * 2,
        # One reply to each of two prompts of the one trait.
        "with each trait shown": 2,
        # Of base and policy.
        "for their length": 2 * 2,
        # Two prompts alone, then with four turns more, and after a reply of the base; 24 of the
        # dose and one of the run's own; 28 questions and the doubt.
        "in probes": 3 * (2 + 2 * 5 + 2 + 24 + 1 + 28 * 2),
        # Two pairs and a ring of three words, in both orders: freely and at random of both arms,
        # told of the base.
        "to free choices": 2 * 2 * 5 * 2 + 5 * 2,
    }


def test_what_is_not_asked_for_is_not_counted(smoke_config: RunConfig) -> None:
    without = changed(smoke_config, preferences={"pairs_per_trait": 0}, probes={"names": ()})
    section = without.evaluation.model_copy(update={"attribution_prompts": 0})
    without = without.model_copy(update={"evaluation": section})
    counts = replies_at_most(without, ["honest", "warm"], num_tested=5, num_general=0)
    assert list(counts) == ["on held-out prompts", "for their length"]


def test_traits_are_shown_on_the_prompts_of_every_trait(smoke_config: RunConfig) -> None:
    # Two prompts of each of three traits, with each of three.
    counts = replies_at_most(smoke_config, ["honest", "warm", "brief"], num_tested=9, num_general=0)
    assert counts["with each trait shown"] == 3 * 2 * 3
    # No more than there are.
    counts = replies_at_most(smoke_config, ["honest", "warm", "brief"], num_tested=3, num_general=0)
    assert counts["with each trait shown"] == 3 * 1 * 3


def test_every_probe_made_from_prompts_is_counted(smoke_config: RunConfig) -> None:
    names = tuple(probe_scripts.MADE_FROM_PROMPTS)
    every = changed(smoke_config, probes={"names": names, "prompts_per_trait": 2})
    prompts = [
        Prompt(f"{trait_id}-{number}", trait_id, "family", "trait", "Hi?", "test")
        for trait_id in ("honest", "warm")
        for number in range(2)
    ]
    scripts = probe_scripts.from_prompts(names, prompts)
    scripts += probe_scripts.prefilled(prompts, {p.prompt_id: "Hello." for p in prompts})
    asked = sum(len(script.turns) - len(script.given_replies) for script in scripts)
    counts = replies_at_most(every, ["honest", "warm"], num_tested=9, num_general=4)
    assert counts["in probes"] == 3 * asked
    # Of one prompt in all a trait has one at most.
    fewer = replies_at_most(every, ["honest", "warm"], num_tested=1, num_general=4)
    assert fewer["in probes"] == 3 * asked / 2
