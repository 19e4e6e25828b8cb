"""Seconds of a step: computation by the FLOPs formula, collectives by their bytes, the optimizer by the bytes it touches."""

from __future__ import annotations

from dataclasses import dataclass

from sycoca_ds.capacity.communication import Traffic, traffic
from sycoca_ds.capacity.machines import Assumptions, Machine
from sycoca_ds.capacity.step import Step
from sycoca_ds.model.flops import step_flops


@dataclass(frozen=True)
class Speed:
    """One optimizer step."""

    compute: float
    """Seconds of matrix products, recomputation and the second run of the encoders included."""
    queueing: float
    """Seconds that the host needs to queue the step's kernels; a step is never shorter."""
    sent: float
    """Bytes that a GPU sends."""
    collectives: float
    """Seconds of all collectives, hidden or not."""
    exposed: float
    """Seconds of them for which the GPU waits."""
    optimizer: float
    input: float
    """Seconds that the loader needs for the step's pictures; hidden unless it is the longest."""
    samples: int
    """Of the step, over all ranks."""
    model_flops: int
    """Of one sample: forward and backward alone."""
    hardware_flops: int
    """Of one sample, with all that is computed again."""

    @property
    def seconds(self) -> float:
        return max(max(self.compute, self.queueing) + self.exposed + self.optimizer, self.input)

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds

    def mfu(self, machine: Machine) -> float:
        """Model FLOPs by bf16's peak on all GPUs."""
        return self.samples_per_second * self.model_flops / (machine.gpus * peak_flops(machine, "bf16"))


def peak_flops(machine: Machine, precision: str) -> float:
    """Of one GPU; float32 products run as TF32, at half of bf16's rate (`engine.runtime` allows it)."""
    half = precision == "fp32" and not machine.gpu.cpu
    return machine.gpu.tflops * 1e12 / (2 if half else 1)


def recomputed_shares(step: Step) -> dict[str, float]:
    """Share of each part's layers that are recomputed."""
    model = step.model
    layers = {"image encoder": model.image, "text encoder": model.text, "text decoder": model.text_decoder}
    counts = {part: config.layers for part, config in {**layers, "image decoder": model.image_decoder}.items()}
    shares = {part: -(-counts[part] // every) / counts[part] for part, every in step.checkpointing.items() if every}
    return shares | {"late interaction": 1.0}  # whatever the checkpointing


def collective_seconds(sent: Traffic, machine: Machine) -> float:
    """One kind of collective: each machine's adapters carry what its GPUs exchange with the others, links within carry the rest."""
    assume, ranks = machine.assume, machine.gpus
    within = sent.wire(ranks) / (machine.gpu.link_gbytes * 1e9 * assume.link_share) if machine.gpus_per_node > 1 else 0.0
    double = 2 if sent.operation == "all_reduce" else 1
    crossing = double * sent.bytes * (machine.nodes - 1) / machine.nodes
    between = crossing / (machine.fabric_gbps / 8 * 1e9 * assume.link_share) if machine.nodes > 1 else 0.0
    return max(within, between) + sent.launches * assume.launch_us * 1e-6


def queueing_seconds(step: Step, assume: Assumptions) -> float:
    """What the host needs for a step's blocks, and with several micro-batches for both encoders once more, a third of both ways."""
    k, blocks = step.batches.accumulation_steps, [piece for piece in step.pieces if ", block" in piece.weights]
    encoders = [piece for piece in blocks if "encoder" in piece.part and "kept" not in piece.what]
    each = assume.block_ms + assume.zero3_block_ms * (step.sharding.stage == 3)
    again = assume.recompute_block_ms * sum(piece.recomputed for piece in blocks)
    return k * 1e-3 * (each * (len(blocks) + (len(encoders) / 3 if k > 1 else 0)) + again)


def speed(step: Step, machine: Machine, loader_workers: int) -> Speed:
    """What a step takes on that machine, under its assumptions."""
    assume, batches = machine.assume, step.batches
    tokens = assume.caption_tokens
    k, own = batches.accumulation_steps, batches.global_batch_size // batches.world_size
    model_flops = step_flops(step.model, tokens, loss=step.loss)
    again = {"recompute": recomputed_shares(step), "accumulation_steps": k}
    hardware = step_flops(step.model, tokens, loss=step.loss, **again)
    compute = own * hardware / (peak_flops(machine, step.sharding.precision) * assume.efficiency)
    queueing = queueing_seconds(step, assume)
    sent = traffic(step)
    beside = sum(collective_seconds(t, machine) for t in sent if t.overlaps)
    alone = sum(collective_seconds(t, machine) for t in sent if not t.overlaps)
    exposed = alone + max(beside * (1 - assume.hidden), beside - max(compute, queueing))
    # gradient read twice (norm, update) and written once (clipping), master and moments read and written, weights written; for the
    # average the master and itself read, itself written
    touched = (3 * 4 + 6 * 4 + step.sharding.weight_bytes + 3 * 4 * step.ema) * step.engine.part
    optimizer = touched / (machine.gpu.memory_gbytes * 1e9)
    if step.sharding.offload and not machine.gpu.cpu:  # over PCIe to a host's memory, all GPUs of a machine together
        optimizer = max(optimizer, touched * machine.gpus_per_node / 200e9)
    loading = own / (loader_workers * assume.loader_pictures) if loader_workers else 0.0
    return Speed(
        compute=compute,
        queueing=queueing,
        sent=sum(t.wire(batches.world_size) for t in sent),
        collectives=beside + alone,
        exposed=exposed,
        optimizer=optimizer,
        input=loading,
        samples=batches.global_batch_size,
        model_flops=model_flops,
        hardware_flops=hardware,
    )
