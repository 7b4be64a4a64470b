"""A plan on the console: tables of 80 columns or more, and sentences."""

import math
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from charactertrain.exceptions import ConfigError
from charactertrain.plan.hours import total
from charactertrain.plan.sizing import Plan
from charactertrain.plan.speeds import GIB
from charactertrain.sizing.ranges import Range


def show(plan: Plan, console: Console, stages: Iterable[str]) -> None:
    """Print the plan of the given stages.

    Raises:
        ConfigError: Something does not fit; it says what, and what to change.
    """
    chosen = list(stages)
    _show_layout(plan, console)
    console.print(_stage_table(plan, chosen))
    _show_totals(plan, console, chosen)
    if plan.held is not None:
        console.print(_memory_table(plan))
        _show_engine(plan, console)
    console.print(_storage_table(plan, chosen))
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)
    if plan.held is None:
        return
    for advice in plan.held.advice:
        console.print(f"advice: {advice}", markup=False)
    if plan.held.problems:
        raise ConfigError("does not fit:\n  " + "\n  ".join(plan.held.problems))
    console.print("everything fits")


def _show_layout(plan: Plan, console: Console) -> None:
    layout, section = plan.layout, plan.section
    architecture = plan.speeds.architecture
    console.print(
        f"{plan.config.model.name}: {architecture.parameters / 1e9:.2f} billion parameters, "
        f"{architecture.kv_bytes() / 1024:.0f} KiB of KV cache a token",
        markup=False,
    )
    if layout.gpus == 0:
        console.print(f"on CPUs: {layout.engines} engines, {layout.workers} training workers")
        return

    def nodes(gpus: float) -> str:
        count = math.ceil(gpus / section.gpus_per_node)
        return f"{gpus:g} GPUs, {count} {'node' if count == 1 else 'nodes'}"

    console.print(
        f"{layout.gpus:g} x {section.gpu.name}, {section.gpus_per_node} to a node\n"
        f"  data stages and evaluation: {layout.engines} engines "
        f"({nodes(layout.engines * layout.gpus_per_engine)})\n"
        f"  policy: {layout.policy_engines} engines and {layout.reward_engines} of reward models "
        f"({nodes(layout.sampler_gpus)}) beside {layout.workers} training workers "
        f"({nodes(layout.trainer_gpus)})",
        markup=False,
    )
    if plan.is_proposed:
        overrides = " ".join(f"{key}={value}" for key, value in layout.settings().items())
        console.print(f"  give the run: {overrides}", markup=False)


def _stage_table(plan: Plan, stages: list[str]) -> Table:
    by = "measured" if plan.speeds.measured is not None else "at the rooflines' shares"
    table = _table(f"work by stage, hours {by}" if plan.times else "work by stage")
    table.add_column("stage", no_wrap=True)
    for column in ("written", "read", "trained on"):
        table.add_column(column, justify="right")
    if plan.times is not None:
        for column in ("GPUs", "hours", "GPU-hours", "most of it"):
            table.add_column(column, justify="right")
    for name in stages:
        work = plan.work[name]
        cells = [tokens(n) for n in (work.tokens_written, work.tokens_read, work.tokens_trained)]
        if plan.times is not None:
            time, gpus = plan.times[name], plan.gpus[name]
            hours = time.seconds.times(1 / 3600)
            held = f"{gpus:g}" if gpus and hours.high > 0 else ""
            cells += [held, span(hours), span(hours.times(gpus)), time.bottleneck]
        table.add_row(name, *cells)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)


def tokens(number: float) -> str:
    """A count in three digits."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}" if number else ""


def span(found: Range) -> str:
    """From the least to the most, in two digits each."""
    if found.high == 0:
        return ""
    return f"{_rounded(found.low)}-{_rounded(found.high)}"


def _rounded(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, 1 - math.floor(math.log10(abs(value))))
    return f"{rounded:,.{min(digits, 3)}f}"


def _show_totals(plan: Plan, console: Console, stages: list[str]) -> None:
    if plan.times is None:
        return
    hours = total(plan.times[name].seconds for name in stages).times(1 / 3600)
    line = f"in all {span(hours)} hours"
    if plan.layout.gpus > 0:
        each = (plan.times[name].seconds.times(plan.gpus[name] / 3600) for name in stages)
        gpu_hours, kept = total(each), hours.times(plan.layout.gpus)
        line += f"; {span(gpu_hours)} GPU-hours held by stages, {span(kept)} if all are kept"
        price = plan.section.price_per_gpu_hour
        if price is not None:
            line += f", at {price:g} an hour {span(kept.times(price))}"
    console.print(line, markup=False)


def _memory_table(plan: Plan) -> Table:
    assert plan.held is not None, "there are GPUs"
    room = plan.speeds.device.memory_bytes / GIB
    table = _table(f"memory of a training worker, GiB of {room:g}")
    table.add_column("")
    for stage in plan.held.trainers:
        table.add_column(stage, justify="right")
    rows = {
        "parameters": "parameters",
        "gradients": "gradients",
        "optimizer": "masters and Adam",
        "reference": "reference",
        "buffers": "ZeRO's buffers",
        "activations": "activations",
        "logits": "logits",
        "on_host": "less what is on the host",
        "total": "in all",
    }
    for name, title in rows.items():
        values = [getattr(memory, name) / GIB for memory in plan.held.trainers.values()]
        if any(values):
            table.add_row(title, *(f"{value:.1f}" for value in values))
    reserve = plan.section.trainer_reserve_gib
    table.add_row("reserve (assumed)", *(f"{reserve:.1f}" for _ in plan.held.trainers))
    return table


def _show_engine(plan: Plan, console: Console) -> None:
    assert plan.held is not None, "there are GPUs"
    engine, resources = plan.held.engine, plan.config.sampler.resources
    context = plan.config.model.context_tokens
    console.print(
        f"an engine: weights {engine.weights / GIB:.1f} GiB, reserve {engine.reserve / GIB:.1f} "
        f"(assumed), KV cache {max(0.0, engine.cache) / GIB:.1f} GiB: {engine.cache_tokens:,.0f} "
        f"tokens, {engine.sequences(context):.0f} texts of {context} "
        f"(max_num_seqs {resources.max_num_seqs})",
        markup=False,
    )


def _storage_table(plan: Plan, stages: list[str]) -> Table:
    table = _table("storage")
    for column in ("artifact", "left", "besides, while it is made"):
        table.add_column(column, justify="left" if column == "artifact" else "right")
    left = passing = 0.0
    for name in stages:
        of_model = plan.models.get(name)
        size = plan.rows.get(name, 0.0) + (of_model.left if of_model else 0.0)
        more = of_model.passing if of_model else 0.0
        left, passing = left + size, max(passing, more)
        if size:
            table.add_row(name, size_of(size), size_of(more) if more else "")
    table.add_row("in all", size_of(left), f"{size_of(passing)} at most")
    return table


def size_of(size: float) -> str:
    """Bytes in two digits."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{_rounded(size / unit)} {name}"
    return f"{_rounded(size / 1e3)} kB"
