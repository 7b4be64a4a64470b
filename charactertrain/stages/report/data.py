"""The data part of the report's view: coverage of the prompts, reliability of the rankings."""

from charactertrain.artifacts import Json, Manifest
from charactertrain.records import NO_TRAIT
from charactertrain.report.data_view import (
    Agreement,
    CoverageView,
    Estimate,
    ExampleRow,
    FacetRow,
    RankingView,
    ReliabilityRow,
    VarietyRow,
)

_DUPLICATE_REASONS = ("near_duplicate", "evaluation_overlap")


def coverage(prompts: Manifest) -> CoverageView:
    """What the prompts cover, as their manifest has it."""
    summary, found = prompts.summary, prompts.summary["coverage"]
    return CoverageView(
        num_asked=summary["asked"],
        num_rounds=summary["rounds"],
        num_missing=summary["missing"],
        num_duplicates=sum(prompts.rejects.get(reason, 0) for reason in _DUPLICATE_REASONS),
        facets=tuple(
            FacetRow(
                trait_id=_trait(row["trait_id"]),
                kind=row["kind"],
                facet=row["facet"],
                source=row["source"],
                split=row["split"],
                wanted=row["wanted"],
                found=row["found"],
            )
            for row in found["facets"]
        ),
        variety=tuple(
            VarietyRow(trait_id=_trait(trait_id), **values)
            for trait_id, values in found["variety"].items()
        ),
        examples=tuple(
            ExampleRow(
                trait_id=_trait(row["trait_id"]),
                kind=row["kind"],
                facet=row["facet"],
                text=row["text"],
            )
            for row in found["examples"]
        ),
    )


def _trait(trait_id: str) -> str | None:
    return None if trait_id == NO_TRAIT else trait_id


def ranking(summary: Json) -> RankingView:
    """Reliability and cost of the rankings, as their manifest has them."""
    cost = summary["cost"]
    rows = {"all traits": summary["reliability"], **summary["reliability_by_trait"]}
    agreements = {"all traits": summary["agreement"], **summary["agreement_by_trait"]}
    return RankingView(
        ranker=summary["ranker"],
        judge=summary["judge"],
        reliability=tuple(_reliability(subject, values) for subject, values in rows.items()),
        agreement=tuple(
            Agreement(
                subject=subject,
                ranker=ranker,
                same_winner=_interval(values),
                num_prompts=values["num_clusters"],
            )
            for subject, by_ranker in agreements.items()
            for ranker, values in by_ranker.items()
        ),
        num_comparisons=cost["num_comparisons"],
        tokens_per_comparison=cost["prompt_tokens_per_comparison"],
        computed_tokens_per_comparison=cost["computed_tokens_per_comparison"],
        cache_hit_share=cost["cache_hit_share"],
    )


def _reliability(subject: str, values: Json) -> ReliabilityRow:
    measures = ("swap_consistency", "cyclic_triads", "split_half", "length_correlation")
    found = {name: values[name] and _interval(values[name]) for name in measures}
    return ReliabilityRow(subject=subject, num_prompts=values["num_prompts"], **found)


def _interval(values: Json) -> Estimate:
    return Estimate(value=values["estimate"], ci_low=values["ci_low"], ci_high=values["ci_high"])
