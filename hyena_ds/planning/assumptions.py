"""What the scaling study stands on, row by row: figures of devices and links, what is reached of them, file systems."""

from __future__ import annotations

from hyena_ds.cost.beside_steps import (
    FILE_CALL,
    FILE_CALLS,
    FILE_RATE_OF_A_NODE,
    FILE_RATE_OF_ALL,
    HOST_COPY,
    PROCESSES_START_IN,
)
from hyena_ds.cost.devices import GIB, PADDING_AND_PRODUCT, PUBLISHED, REACHED, TRANSFORM_COPIES, Device
from hyena_ds.cost.shape import StepShape
from hyena_ds.planning.forecast import USABLE
from hyena_ds.planning.sources import Kind, Sourced, sourced_table


def assumptions(device: Device, step: StepShape) -> str:
    """The table."""
    sheet, rates = PUBLISHED[device.name], device.rates
    card: tuple[Kind, str] = ("measured", "`make gpu` on one H200")
    if device.name != "h200":
        card = ("assumed", "as one H200 reached (`make gpu`)")
    sizes = [f"{copies:g} up to 2^{points.bit_length() - 1}" for points, copies in TRANSFORM_COPIES]
    (_, fewer), (last, most) = TRANSFORM_COPIES[-2:]
    rows: list[tuple[str, str, Kind, str]] = [
        (
            "device",
            f"{device.name}: {sheet.memory_gib:g} GiB, {sheet.bandwidth / 1e12:g} TB/s, {sheet.float32 / 1e12:g} TF/s float32, "
            f"{sheet.bfloat16 / 1e12:g} bfloat16 dense",
            "data sheet",
            sheet.source,
        ),
        ("inside a machine, 8 devices", f"{sheet.link / 1e9:g} GB/s one way", "data sheet", "the same"),
        (
            "between machines",
            f"{sheet.network / 1e9:g} GB/s one way a device",
            "assumed" if sheet.assumes_network else "data sheet",
            "the same",
        ),
        ("products reach of these", f"{REACHED.gemm:.0%}", *card),
        ("copies and transforms reach of memory", f"{REACHED.copy:.0%}", *card),
        ("other kernels reach of memory", f"{REACHED.pointwise:.0%}", card[0], f"{card[1]}, fitted to nine steps"),
        ("links reach", f"{REACHED.link:.0%}", "assumed", "there was one card"),
        ("a real transform", f"{', '.join(sizes)} points, in copies of its data", *card),
        (
            f"a real transform of more than 2^{last.bit_length() - 1} points",
            f"{most - fewer:.2g} copies more for each factor of 8",
            "assumed",
            "as between the last two",
        ),
        (
            "padding and product of spectra",
            f"{PADDING_AND_PRODUCT:g} copy of its data a transform",
            "counted",
            "`ops/fft_convolution.py`",
        ),
        (
            "elementwise work",
            f"{step.kernels} kernels, each of which reads and writes device memory",
            "counted",
            "`hyena-ds bench bytes`, `cost/traffic.py`",
        ),
        ("starting a kernel", f"{1e6 * rates.kernel:g} us", card[0], f"{card[1]}, at 1,024 tokens"),
        ("of a step beside all that", f"{1e3 * rates.step:g} ms", "assumed", "what the host does"),
        (
            "exchanges",
            "beside the transforms of other groups of channels",
            "counted",
            "groups: `cost/traffic.py`",
        ),
        ("links inside and between machines", "at once", "assumed", "NCCL was not run between cards"),
        (
            "latency of a collective",
            f"{1e6 * rates.links.latency_inside:g} us inside, {1e6 * rates.links.latency_between:g} us between machines",
            "assumed",
            "the same",
        ),
        ("memory that a plan fills", f"{USABLE:.0%}", "assumed", "room for what is not counted"),
        (
            "CUDA's context, NCCL's and cuFFT's buffers",
            f"{device.process / GIB:g} GiB",
            "assumed",
            "NCCL was not run between cards",
        ),
        ("slack of the allocator", f"{device.slack:.0%}", "assumed", "of what is live"),
        (
            "shared file system, calls",
            f"{1e3 * FILE_CALL:g} ms each, {FILE_CALLS:,} a second of all nodes",
            "assumed",
            "ask yours",
        ),
        (
            "shared file system, bytes",
            f"{FILE_RATE_OF_A_NODE / 1e9:g} GB/s a node, {FILE_RATE_OF_ALL / 1e9:g} GB/s of all",
            "assumed",
            "ask yours",
        ),
        (
            "state copied to main memory",
            f"{HOST_COPY / 1e9:g} GB/s a device",
            "assumed",
            "below PCIe 4.0 x16",
        ),
        ("processes of a run are up", f"{PROCESSES_START_IN:g} s", "assumed", "imports from a shared file system"),
    ]
    return sourced_table(
        ("what", "value"), (Sourced((what, value), kind, source) for what, value, kind, source in rows)
    )
