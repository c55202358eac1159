"""A plan as text for people; `Plan.to_dict` is the same for machines."""

from unitoken_jax.planning.cost import Collective
from unitoken_jax.planning.estimate import KERNEL_SHARE, PRODUCT_SHARE, Time
from unitoken_jax.planning.plan import CompiledStep, Plan

# Memory is shown in GiB, what goes over links in GB.
GIB, GB = 2**30, 1e9


def report_lines(plan: Plan) -> list[str]:
    """The whole report, line by line."""
    work = _work(plan, plan.compiled) if plan.compiled else []
    return [*_head(plan), "", *_memory(plan), *work]


def verdict(plan: Plan) -> str:
    """The most memory that the step takes at one time, what a device has, and whether that is enough."""
    memory = plan.memory
    limit = "" if memory.limit is None else f" of {memory.limit / GIB:.2f}"
    peak = "?" if memory.peak is None else f"{memory.peak / GIB:.2f}"
    return f"{peak}{limit} GiB a device: {'fits' if memory.fits else 'DOES NOT FIT'}"


def _head(plan: Plan) -> list[str]:
    """What was planned: devices, batch, what trains, and by which compiler."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    outcome = f"compiled in {plan.compiled.compile_seconds:.0f} s" if plan.compiled else "refused"
    return [
        f"{plan.topology}: {plan.devices} x {plan.device}, mesh {mesh}",
        f"batch: {plan.rows} rows x {plan.row_length} tokens = {plan.rows * plan.row_length:,} tokens; "
        f"{plan.row_crops} crops, {plan.row_images} images to encode a row",
        f"trained: {', '.join(plan.trained)}; remat {plan.remat}",
        f"{outcome} by {versions}",
    ]


def _memory(plan: Plan) -> list[str]:
    """What lies in a device's memory, and the largest temporaries."""
    memory = plan.memory
    sizes = {
        "parameters, trained": memory.parameters,
        "parameters, frozen": memory.frozen,
        "optimizer": memory.optimizer,
        "batch": memory.batch,
        "temporaries": memory.temporaries,
        "program": memory.program,
    }
    shown = [f"  {name:<21}{size / GIB:9.3f}" for name, size in sizes.items() if size is not None]
    text = ["memory, GiB a device", *shown, f"  peak {verdict(plan)}"]
    if plan.devices > 1:
        text.append(f"  of parameters and optimizer {memory.whole / GIB:.3f} is not split over the mesh")
    if plan.error:
        return [*text, f"  the compiler: {plan.error}"]
    if memory.largest:
        text.append("  largest temporaries, and what shares their place in turn")
    return text + [f"    {size / GIB:9.3f}  {_short(shapes)}" for size, shapes in memory.largest]


def _short(shapes: str, width: int = 80) -> str:
    """`shapes` cut off after `width` characters."""
    return shapes if len(shapes) <= width else shapes[: width - 3] + "..."


def _si(number: float) -> str:
    """`number` with a prefix for its size: 1.5e12 is "1.5 T"."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.4g} {letter}"
    return f"{number:.4g}"


def _by_network(counts: dict[str, float]) -> str:
    """Counts by network as "decoder 1.5 T, vq 20 G", without those that are 0."""
    return ", ".join(f"{name} {_si(count)}" for name, count in counts.items() if count)


def _work(plan: Plan, step: CompiledStep) -> list[str]:
    """FLOPs, collectives and, where the device's speed is known, the time of a step."""
    cost = step.cost
    text = [
        "",
        "FLOPs a device and step",
        f"  by formula {_si(sum(plan.flops.values()))}: {_by_network(plan.flops)}",
        f"  compiled   {_si(sum(cost.flops.values()))}, loops counted as they run: {_by_network(cost.flops)}",
    ]
    if step.kernel_flops:
        kernels = ", ".join(f"{name} x {runs:.0f}" for name, runs in cost.kernels.items())
        text.append(f"  kernels    {_si(step.kernel_flops)} by formula: {kernels}")
    text += ["", "collectives a device and step"]
    text.append("  kind, devices     in program    run   GB of payload   sent    exposed")
    text += [_collective(collective) for collective in cost.collectives] or ["  none"]
    if step.time is None:
        return [*text, "", f"no published speed is known of {plan.device}"]
    return text + _time(plan, step.time, cost.cycles)


def _collective(total: Collective) -> str:
    """A row of the table of collectives."""
    counts = f"{total.kind:<18} {total.group:4} {total.calls:5} {total.runs:7.0f}"
    traffic = f"{total.bytes / GB:12.3f} {total.sent_bytes / GB:9.3f} {total.exposed_bytes / GB:9.3f}"
    return f"  {counts} {traffic}"


def _time(plan: Plan, time: Time, cycles: dict[str, float]) -> list[str]:
    """What each resource needs, and the estimate with what it is made of."""
    speed = plan.tokens_per_second(time.estimate)
    source = "the compiler's cycles" if cycles else f"FLOPs at {PRODUCT_SHARE:.0%} of peak"
    return [
        "",
        "seconds a step that each resource needs at its published peak",
        f"  compute {time.compute:.3g}, HBM {time.hbm:.3g}, interconnect {time.interconnect:.3g}: "
        f"at least {time.limit:.3g}, MFU at most {plan.mfu(time.limit):.1%}",
        f"estimate {time.estimate:.3g} s: {speed:,.0f} tokens/s a device, {speed * plan.devices:,.0f} in all,"
        f" MFU {plan.mfu(time.estimate):.1%}",
        f"  products and the rest {time.products:.3g} ({source})",
        *_seconds_by_network(cycles, time.products),
        f"  attention kernels {time.kernels:.3g} (at {KERNEL_SHARE:.0%} of peak)",
        f"  collectives that nothing hides {time.exposed:.3g}",
        "  Assumed: rows full of tokens, one example each, a third of their positions learnt; links at their",
        "  published pace, one way on open axes and in small groups. Left out: kernels' memory traffic, time",
        "  between steps. It ranks plans; it measures nothing.",
    ]


def _seconds_by_network(cycles: dict[str, float], seconds: float) -> list[str]:
    """How `seconds` divide among the networks, by the compiler's cycles; the longest first."""
    total = sum(cycles.values())
    by_length = sorted(cycles.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{name} {seconds * count / total:.3g}" for name, count in by_length)
    return [f"    {shares}"] if total else []


def summary_line(plan: Plan) -> str:
    """A plan in one line, to compare it with others: data x fsdp x tensor, rows, remat, speed, memory."""
    axes = " x ".join(map(str, plan.mesh.values()))
    setting = f"{axes:<12} {plan.rows:>5} rows, remat {plan.remat:<5}"
    if plan.time is None:
        return f"{setting} {verdict(plan)}"
    speed, mfu = plan.tokens_per_second(plan.time.estimate), plan.mfu(plan.time.estimate)
    return f"{setting} {speed:8,.0f} tokens/s a device, MFU {mfu:5.1%}, {verdict(plan)}"
