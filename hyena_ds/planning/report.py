"""A plan as a person reads it: the run, a row a stage, memory and time by part, and what would be better."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.devices import GIB, REACHED, Cluster
from hyena_ds.cost.memory import PARTS as PARTS_OF_MEMORY
from hyena_ds.cost.memory import peak_memory
from hyena_ds.cost.shape import checkpoint_bytes, parameters
from hyena_ds.cost.step_time import PARTS as PARTS_OF_TIME
from hyena_ds.planning.forecast import USABLE, Forecast, Prediction
from hyena_ds.text import aligned, number, show_duration

_MIB = float(1 << 20)


def describe_plan(config: RunConfig, cluster: Cluster, forecasts: list[Forecast]) -> list[str]:
    """All lines."""
    device = cluster.device
    seconds = sum(forecast.seconds for forecast in forecasts)
    lines = [
        f"{config.name}: {parameters(config.model):,} weights, ZeRO stage {config.zero_stage}, {config.precision}, on "
        f"{cluster.nodes} x {cluster.devices_per_node} {device.name}, {device.memory / GIB:.3g} GiB each ({device.source})",
        _basis(cluster),
        f"kernels: {forecasts[0].prediction.shape.kernels} ({_why(config, cluster)})",
        "",
    ]
    lines += aligned([_HEADINGS, *(_row(forecast) for forecast in forecasts)])
    lines += ["", "peak memory of a device by part, GiB"]
    of_memory = [
        [*_by_part(each, each.prediction.memory.parts, GIB), each.prediction.memory.moment] for each in forecasts
    ]
    lines += aligned([["stage", *PARTS_OF_MEMORY, "sum", "highest in"], *of_memory])
    lines += ["", "time of a step by part, seconds"]
    of_time = [_by_part(each, each.prediction.time.parts, 1.0) for each in forecasts]
    lines += aligned([["stage", *PARTS_OF_TIME, "sum"], *of_time])
    lines += _by_zero_stage(forecasts, cluster)
    told = [line for forecast in forecasts for line in _advice(forecast, cluster)]
    if told:
        lines += ["", *told]
    size, kept = checkpoint_bytes(config.model) / _MIB, config.checkpoint.keep_last
    lines += [
        "",
        f"to finish: {show_duration(seconds)} for {config.total_steps:,} steps and {config.total_tokens:,} tokens, without "
        "validation, checkpoints and starts",
        f"checkpoint: {number(size)} MiB, {number(size * kept)} MiB for the newest {kept}",
    ]
    return lines


_WORTH_SHARDING = 0.1
"""Share of a device's memory that the whole state takes, from which on what ZeRO shards is shown."""


def _by_zero_stage(forecasts: list[Forecast], cluster: Cluster) -> list[str]:
    """What the stage that needs most memory would need under every ZeRO stage, with and without offload."""
    highest = max(forecasts, key=lambda forecast: forecast.prediction.memory.total).prediction.shape
    device = cluster.device
    whole = peak_memory(replace(highest, zero_stage=0, offload_optimizer=False, offload_param=False), device)
    if whole.parts["weights and optimizer"] < _WORTH_SHARDING * device.memory:
        return []
    rows = [["ZeRO stage", "offload", "weights and optimizer", "sum", "host", ""]]
    for stage, optimizer, param in _SHARDINGS:
        shape = replace(highest, zero_stage=stage, offload_optimizer=optimizer, offload_param=param)
        found = peak_memory(shape, device)
        named = [name for name, is_asked in (("optimizer", optimizer), ("param", param)) if is_asked]
        sizes = (found.parts["weights and optimizer"], found.total, found.host * cluster.devices_per_node)
        says = "" if found.total <= USABLE * device.memory else "does not fit"
        says += " (as configured)" if shape == highest else ""
        rows.append([str(stage), ", ".join(named), *(number(size / GIB) for size in sizes), says.strip()])
    title = f"peak memory of a device by ZeRO stage and offload, GiB (context {highest.context_length:,}); host: of a machine"
    return ["", title, *aligned(rows, left=(1, 5))]


_SHARDINGS: tuple[tuple[Literal[0, 1, 2, 3], bool, bool], ...] = (
    *((0, False, False), (1, False, False), (2, False, False), (3, False, False)),
    *((1, True, False), (2, True, False), (3, True, False), (3, True, True)),
)
"""ZeRO stage, whether the optimizer is offloaded, whether the parameters are."""


def _basis(cluster: Cluster) -> str:
    if cluster.device.name == "this":
        return "measured on this machine, one thread a rank; links between machines count as those inside"
    return (
        f"published rates, of which {REACHED.gemm:.0%} of products, {REACHED.pointwise:.0%} to {REACHED.copy:.0%} of memory "
        f"(as on an H200) and {REACHED.link:.0%} of links (assumed) are reached"
    )


def _why(config: RunConfig, cluster: Cluster) -> str:
    if cluster.device.on_cpu:
        return "no CUDA device"
    return "auto: where the check at the start finds them right" if config.kernels == "auto" else "as the config says"


_HEADINGS = ("stage", "context", "grid", "batch", "policy", "GiB", "s a step", "MiB sent", "tokens/s", "time")


def _batch(found: Prediction) -> str:
    shape = found.shape
    return f"{shape.sequences} = {shape.data_parallel} x {shape.batch} x {shape.accumulation}"


def _grid(found: Prediction) -> str:
    return f"dp {found.shape.data_parallel} x sp {found.shape.sequence_parallel}"


def _needs(found: Prediction) -> str:
    return f"{number(found.memory.total / GIB)} GiB, {number(found.time.seconds)} s a step"


def _row(forecast: Forecast) -> tuple[str, ...]:
    found = forecast.prediction
    tokens = forecast.plan.config.tokens_per_step
    return (
        str(forecast.plan.number),
        f"{forecast.plan.config.context_length:,}",
        _grid(found),
        _batch(found),
        found.shape.policy,
        number(found.memory.total / GIB) + ("" if found.fits else ": does not fit"),
        number(found.time.seconds),
        number(found.time.exchanged / _MIB),
        f"{tokens / found.time.seconds:,.0f}",
        show_duration(forecast.seconds),
    )


def _by_part(forecast: Forecast, parts: dict[str, float], unit: float) -> list[str]:
    """The stage, its parts and their sum."""
    return [str(forecast.plan.number), *(number(part / unit) for part in (*parts.values(), sum(parts.values())))]


def _advice(forecast: Forecast, cluster: Cluster) -> list[str]:
    """What makes the stage fit, and what would be faster."""
    found, lines = forecast.prediction, []
    number_of_stage = forecast.plan.number
    if not found.fits:
        wanted = f"stage {number_of_stage}: does not fit: {number(found.memory.total / GIB)} GiB of "
        wanted += f"{number(USABLE * cluster.device.memory / GIB)} (95 % of a device); "
        cure = forecast.cure
        if cure is None:
            lines.append(wanted + "shorten the context or narrow the model")
        else:
            on = "" if cure.ranks == cluster.ranks else f" on {cure.ranks:,} ranks"
            lines.append(f"{wanted}cheapest change: {' and '.join(cure.settings)}{on}: {_needs(cure.prediction)}")
    if not forecast.is_searched:
        lines.append(f"stage {number_of_stage}: its batch divides in too many ways to look at all other grids")
    better = forecast.better
    if better is not None and (forecast.cure is None or better.shape != forecast.cure.prediction.shape):
        share = f", {better.time.seconds / found.time.seconds:.0%} of the time" if found.fits else ""
        lines.append(
            f"stage {number_of_stage}: better: {_grid(better)}, {_batch(better)}, {better.shape.policy}: "
            f"{_needs(better)}{share}"
        )
    return lines
