"""traits: the constitution as rows."""

from charactertrain.artifacts import Outcome
from charactertrain.pipeline import Work
from charactertrain.records import Trait, to_table
from charactertrain.stages.context import Context


def run(work: Work, context: Context) -> Outcome:
    """Write the constitution's traits."""
    name = "traits/part-000000.parquet"
    work.directory.write_table(name, to_table(context.traits(), Trait))
    constitution = context.constitution
    summary = {"name": constitution.name, "description": constitution.description}
    return Outcome(files=(name,), summary=summary)
