"""A forecast in words, and the units it is told in."""

from __future__ import annotations

from .forecast import DECODING, TEXT, Forecast

_PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))

_OTHERS = {TEXT: "the text encoder, which runs before", DECODING: "the VAE, which runs after"}


def quantity(value: float, unit: str) -> str:
    """Three digits and a prefix of a thousand: ``quantity(28.58e9, "B")`` is ``28.6 GB``."""
    for prefix, size in _PREFIXES:
        if value >= 0.9995 * size:
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """``40 s``, ``2 min 10 s``, ``1 h 05 min``; below ten seconds with one decimal."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def forecast_lines(forecast: Forecast) -> list[str]:
    """The forecast, a line each for calls, time, memory of device and host, disk, and for what it leaves out."""
    lines = [_calls(forecast), _time(forecast), _memory(forecast), _host(forecast), _disk(forecast)]
    known = [phase.name for phase in forecast.phases]
    if others := [told for name, told in _OTHERS.items() if name not in known]:
        lines.append(f"not counted: {', '.join(others)}")
    return lines


def _calls(forecast: Forecast) -> str:
    stages = ", ".join(f"{stage.forwards} {stage.name}" for stage in forecast.stages)
    total = quantity(forecast.flops, "FLOP")
    each = quantity(forecast.forward_flops, "FLOP")
    return f"calls of the network: {stages}; {each} each, {total} in all"


def _time(forecast: Forecast) -> str:
    measured, seconds = forecast.measured, forecast.seconds
    if measured is None or seconds is None:
        return "time: not known before a run of this kind or a timed block"
    stages = ", ".join(
        f"{stage.name} {duration(forecast.seconds_of(stage.forwards) or 0)}"
        for stage in forecast.stages
        if stage.forwards
    )
    return f"time: about {duration(seconds)} of sampling ({stages}), told from {measured.source}"


def _memory(forecast: Forecast) -> str:
    phases = ", ".join(
        f"{phase.name} {quantity(phase.total, 'B')} "
        f"({quantity(phase.weights, 'B')} weights + {quantity(phase.working, 'B')})"
        for phase in forecast.phases
    )
    return (
        f"memory on the device: {quantity(forecast.peak, 'B')} at most if all weights of a network "
        f"are there: {phases}"
    )


def _host(forecast: Forecast) -> str:
    image = quantity(forecast.image, "B")
    frames = f"frames go to a file a few at a time, as one IMAGE they take {image}"
    if forecast.device == "cpu":
        return f"memory of the host: that of the device, which is the CPU; {frames}"
    parts = {
        "hidden state": forecast.hidden,
        "states on their way to the disk": forecast.state,
        "noise and latents": forecast.drawn,
    }
    told = ", ".join(f"{quantity(size, 'B')} {name}" for name, size in parts.items() if size)
    total = quantity(forecast.host, "B")
    return f"memory of the host beside the weights: about {total} in sampling ({told}); {frames}"


def _disk(forecast: Forecast) -> str:
    return (
        f"host and disk: {quantity(forecast.mapped, 'B')} of weights read (kept in RAM while there is "
        f"room), {quantity(forecast.state, 'B')} to resume from, "
        f"{quantity(forecast.latents, 'B')} latents, a file of about {quantity(forecast.file, 'B')}"
    )
