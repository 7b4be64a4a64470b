"""How many comparisons a second does each ranker make, against a judge that writes its verdict?

All compare the same responses on one engine, the prefix cache empty at the start of each. Peer: the
same question in both orders, answered in words (up to 64 tokens) that end with a letter. Prints one
JSON line; `ratio`: comparisons a second of the slowest of our rankers by the peer's.

python benchmarks/ranking.py [--prompts 8] [--candidates 6] [overrides ...]
"""

import argparse
import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import vllm
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from charactertrain.config import RunConfig, validate
from charactertrain.models import sources
from charactertrain.records import Message, Trait
from charactertrain.runtime.engines import LeasedSampler
from charactertrain.runtime.sampling import Sample, SampleRequest, SamplingSettings
from charactertrain.seeds import derive_seed
from charactertrain.stages.context import response_settings
from charactertrain.stages.rankings.comparisons import Candidate, Comparisons, Group
from charactertrain.stages.rankings.rankers import make_ranker
from charactertrain.stages.start import open_session
from charactertrain.storage import open_directory
from charactertrain.templates import (
    CHECK_MESSAGES,
    Shown,
    judge_conversation,
    response_conversation,
)

ROOT = Path(__file__).resolve().parent.parent
RANKERS = ("judge", "judge_listwise", "rating", "contrast")
VERDICT = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=64, min_tokens=0, stop=())
TRAIT = Trait(
    "enthusiastic",
    "I am full of enthusiasm! I get excited about things, and I love to show it!",
    (),
    None,
    1.0,
    "benchmark",
)


def main() -> None:
    """Time every ranker and the peer, and print the line."""
    arguments = _arguments()
    config = composed_config(arguments.overrides)
    with engine(config) as sampler:
        groups = [
            group_of(sampler, config, TRAIT, message, ["strong", "none"] * arguments.candidates)
            for message in CHECK_MESSAGES[: arguments.prompts]
        ]
        groups = [
            Group(g.group_id, g.prompt, g.traits, g.candidates[: arguments.candidates])
            for g in groups
        ]
        num_comparisons = sum(len(group.pairs) for group in groups)
        rates: dict[str, list[float]] = {name: [] for name in (*RANKERS, "peer")}
        num_parsed = 0
        for _ in range(arguments.runs):
            for name in rates:
                ray.get(sampler.handle.forget_prefixes.remote())
                started = time.perf_counter()
                if name == "peer":
                    num_parsed = sum(v is not None for v in written_verdicts(sampler, groups))
                else:
                    compared(sampler, config, name, groups)
                rates[name].append(num_comparisons / (time.perf_counter() - started))
    medians = {name: round(statistics.median(found), 2) for name, found in rates.items()}
    peer = medians.pop("peer")
    slowest = min(medians.values())
    print(
        json.dumps(
            {
                "name": "ranking",
                "ours": slowest,
                "peer": peer,
                "peer_name": "verdict in up to 64 tokens, both orders",
                "unit": "comparisons per second",
                "ratio": round(slowest / peer, 2),
                "ratios": {name: round(rate / peer, 2) for name, rate in medians.items()},
                "peer_verdicts_parsed": round(num_parsed / (2 * num_comparisons), 3),
                "num_comparisons": num_comparisons,
                "model": config.model.name,
                "versions": versions(),
            }
        )
    )


def composed_config(overrides: Sequence[str]) -> RunConfig:
    """The config of a run that stops before training."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", overrides=["run.until=rankings", *overrides])
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return validate(values)


@contextmanager
def engine(config: RunConfig) -> Iterator[LeasedSampler]:
    """A sampler on one engine of the config's model."""
    model = str(sources.resolve(config.model.path))
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_session(config, open_directory(scratch), Console(quiet=True), {}) as session,
    ):
        sampler = session.sampler(model, model).open()
        yield sampler
        sampler.close()


def group_of(
    sampler: LeasedSampler,
    config: RunConfig,
    trait: Trait,
    message: str,
    variants: Sequence[str],
    draw: int = 0,
) -> Group:
    """Responses to a message, one written under each of the variants; other ones for each draw."""
    settings = response_settings(temperature=1.0, max_tokens=48, ending="natural")
    requests = [
        SampleRequest(
            f"{variant}-{index}",
            response_conversation(
                message, [trait], variant=variant, placement=config.model.trait_placement
            ),
            derive_seed(config.seed, trait.trait_id, message, variant, index, draw),
        )
        for index, variant in enumerate(variants)
    ]
    samples = [s for s in sampler.sample(requests, settings) if isinstance(s, Sample)]
    candidates = tuple(Candidate(s.request_id, s.text, s.token_ids) for s in samples if s.token_ids)
    return Group(f"{trait.trait_id}: {message}", message, (trait,), candidates)


def compared(
    sampler: LeasedSampler, config: RunConfig, name: str, groups: Sequence[Group]
) -> list[Comparisons]:
    """What a ranker says of the groups; those on which it fails are left out."""
    ranker = make_ranker(
        name,
        sampler,
        config.rankings,
        placement=config.model.trait_placement,
        seed=config.seed,
    )
    return [found for found in ranker(groups) if isinstance(found, Comparisons)]


def verdict_conversation(traits: Sequence[Trait], prompt: str, first: str, second: str) -> Shown:
    """The judge's question, to be answered with reasons before the letter."""
    shown = judge_conversation(traits, prompt, first, second, ties=False, question=0)
    (message,) = shown.messages
    ask = 'Give your reasons in one or two sentences, and end with "Verdict: A" or "Verdict: B".'
    return Shown((Message("user", f"{message.content} {ask}"),), "")


def written_verdicts(sampler: LeasedSampler, groups: Sequence[Group]) -> list[str | None]:
    """The peer's letters for each pair, in both orders; None where there is none."""
    requests = []
    for group in groups:
        for pair in group.pairs:
            for first, second in (pair, pair[::-1]):
                texts = [group.candidates[index].text for index in (first, second)]
                shown = verdict_conversation(group.traits, group.prompt, *texts)
                seed = derive_seed("verdict", group.group_id, first, second)
                requests.append(SampleRequest(group.group_id, shown, seed))
    letters = []
    for result in sampler.sample(requests, VERDICT):
        text = result.text if isinstance(result, Sample) else ""
        match = re.search(r"verdict:\s*\(?([AB])\b", text, re.IGNORECASE)
        letters.append(match[1].upper() if match else None)
    return letters


def versions() -> dict[str, str]:
    """Of what was measured."""
    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "vllm": vllm.__version__,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of the config, such as model=qwen3_0_6b")
    return parser.parse_args()


if __name__ == "__main__":
    main()
