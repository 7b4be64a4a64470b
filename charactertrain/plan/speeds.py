"""Seconds for work: by rates that were measured, otherwise by rooflines and expected shares."""

from dataclasses import dataclass

from charactertrain.config.plan import GpuSection, PlanSection, RatesFile
from charactertrain.plan.work import Job
from charactertrain.sizing import roofline
from charactertrain.sizing.architecture import Architecture
from charactertrain.sizing.memory import engine_memory
from charactertrain.sizing.ranges import NOTHING, Range, at_shares
from charactertrain.sizing.roofline import Device, Step, Texts, Workers

GIB = 2.0**30


def device_of(gpu: GpuSection, section: PlanSection) -> Device:
    """A GPU in operations and bytes."""
    return Device(
        operations_per_second=gpu.bf16_tflops * 1e12,
        memory_bytes_per_second=gpu.memory_gb_per_second * 1e9,
        memory_bytes=gpu.memory_gib * GIB,
        link_bytes_per_second=gpu.link_gb_per_second * 1e9,
        network_bytes_per_second=section.network_gb_per_second * 1e9,
    )


@dataclass(frozen=True)
class Engines:
    """Equal engines that share work."""

    count: int
    gpus: int
    """Of each."""
    max_num_seqs: int
    memory_fraction: float
    context_tokens: int


@dataclass(frozen=True)
class Speeds:
    """How fast a model is on a kind of GPU."""

    architecture: Architecture
    device: Device
    section: PlanSection
    measured: RatesFile | None

    def job(self, job: Job, engines: Engines) -> Range:
        """Seconds of engines for all requests of a job."""
        return self.read(job, engines) + self.write(job, engines)

    def write(self, job: Job, engines: Engines) -> Range:
        """Of writing; texts of one token are read, and not written."""
        if job.written <= 1:
            return NOTHING
        rates = self.measured.write_tokens_per_second if self.measured else None
        if rates is not None:
            return self._by_rate(job.tokens_written / engines.count, rates)
        texts = Texts(
            count=job.requests / engines.count,
            shown=job.length.shown,
            written=job.written,
            longest=job.longest,
        )
        ideal = roofline.decode_seconds(
            self.architecture,
            self.device.times(engines.gpus),
            texts,
            most_at_once=self.at_once(job, engines),
        )
        return at_shares(ideal, self.section.decode_share)

    def at_once(self, job: Job, engines: Engines) -> float:
        """Texts that an engine writes at a time: its setting, or what its cache has room for."""
        memory = engine_memory(
            self.architecture,
            allowed_bytes=engines.memory_fraction * engines.gpus * self.device.memory_bytes,
            reserve_bytes=engines.gpus * self.section.engine_reserve_gib * GIB,
        )
        room = memory.sequences(job.length.shown + job.written)
        return max(1.0, min(float(engines.max_num_seqs), room))

    def read(self, job: Job, engines: Engines) -> Range:
        """Of reading what no cache holds."""
        tokens = job.tokens_computed / engines.count
        rates = self.measured.read_tokens_per_second if self.measured else None
        if rates is not None:
            return self._by_rate(tokens, rates)
        ideal = roofline.prefill_seconds(
            self.architecture,
            self.device.times(engines.gpus),
            tokens=tokens,
            # What is computed stands at the end, after all that a cache holds.
            context=job.length.common + job.length.own / 2,
            predicted_share=job.predicted_share,
        )
        return at_shares(ideal, self.section.prefill_share)

    def train(self, step: Step, workers: Workers) -> tuple[Range, Range]:
        """Of one step: of computing, and of all with what workers exchange."""
        rates = self.measured.train_tokens_per_second if self.measured else None
        if rates is not None:
            # Of forward and backward; other passes take their share of the three.
            tokens = workers.busiest_tokens(step) * step.passes.total / 3
            seconds = self._by_rate(tokens, rates)
            return seconds, seconds
        computing = at_shares(
            roofline.step_operation_seconds(self.architecture, self.device, step, workers),
            self.section.train_share,
        )
        moving = at_shares(
            roofline.step_network_seconds(self.device, step, workers),
            self.section.network_share,
        )
        return computing, roofline.beside_each_other(computing, moving)

    def send_weights(self, *, is_one_node: bool) -> Range:
        """Of an update: 2 bytes a parameter over the link of rank 0."""
        device = self.device
        rate = device.link_bytes_per_second if is_one_node else device.network_bytes_per_second
        return at_shares(2 * self.architecture.parameters / rate, self.section.update_share)

    def _by_rate(self, tokens: float, rates: tuple[float, float]) -> Range:
        """Measured with another model, scaled by parameters: half of them are twice as fast."""
        assert self.measured is not None, "rates were measured"
        factor = self.measured.parameters / self.architecture.parameters
        return Range(tokens / (rates[1] * factor), tokens / (rates[0] * factor))
