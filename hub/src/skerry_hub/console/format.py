"""Numbers, sizes, times and names as people read them. Pure; used as Jinja filters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from markupsafe import Markup, escape

_STEPS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands grouped, ``–`` for what is not there: 0.42, 12.3, 1,204."""
    if value is None:
        return "–"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, digits - len(str(int(abs(value)))))}f}"


def count(value: float) -> str:
    """Short for tiles: 950, 12.4k, 3.1M."""
    for size, letter in _STEPS:
        if abs(value) >= size * 10:
            return f"{value / size:.1f}{letter}"
    return number(value)


def size(value: float | None) -> str:
    """Bytes in powers of ten, as the firmware profiles count: 812 B, 214 kB, 1.3 GB."""
    if value is None or value < 0:
        return "–"
    for step, letter in _STEPS:
        if value >= step:
            return f"{number(value / step)} {letter}B"
    return f"{int(value)} B"


def microseconds(value: float | None) -> str:
    """A latency: 95 µs, 1.24 ms, 2.1 s."""
    if value is None or value < 0:
        return "–"
    if value < 1_000:
        return f"{number(value)} µs"
    if value < 1_000_000:
        return f"{number(value / 1_000)} ms"
    return f"{number(value / 1_000_000)} s"


def seconds(value: float) -> str:
    """A span: 45 s, 5 min, 2 h 10 min, 3 d 4 h."""
    whole = round(value)
    if whole < 60:
        return f"{number(value)} s" if value < 10 else f"{whole} s"
    parts = ((86_400, "d"), (3_600, "h"), (60, "min"))
    for place, (length, unit) in enumerate(parts):
        if whole >= length:
            rest = ""
            if place + 1 < len(parts):
                smaller, name = parts[place + 1]
                rest = f" {whole % length // smaller} {name}" if whole % length >= smaller else ""
            return f"{whole // length} {unit}{rest}"
    return f"{whole} s"


def percent(part: float, whole: float) -> float:
    """0 to 100; 0 of 0 is 0."""
    return 100.0 * part / whole if whole else 0.0


def share(part: float, whole: float) -> str:
    """``percent`` as text, never rounding something to nothing or to all."""
    value = percent(part, whole)
    if 0 < value < 1:
        return "<1 %"
    if 99 < value < 100:
        return "99 %"
    return f"{value:.0f} %"


def ago(at: int, now: int) -> str:
    """How long ago, in one unit: "just now", "12 s ago", "3 h ago"; "in 5 min" for what is ahead."""
    if not at:
        return "never"
    delta = (now - at) / 1000
    span = abs(delta)
    if span < 3:
        return "just now"
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if span >= length:
            text = f"{int(span // length)} {unit}"
            return f"{text} ago" if delta > 0 else f"in {text}"
    return "just now"


def absolute(at: int) -> str:
    """UTC, to the second."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def time_tag(at: int, now: int) -> Markup:
    """``<time>`` that the page keeps up to date; the absolute time shows on hover."""
    if not at:
        return Markup('<span class="muted">never</span>')
    stamp = datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(stamp, absolute(at), ago(at, now))


_DEEDS: Final = {
    "create": "Created",
    "pause": "Paused",
    "resume": "Resumed",
    "abort": "Aborted",
    "wave": "Wave begins",
}


def deed(action: str) -> str:
    """What the audit log calls an action, as a line of a timeline: rollout.device-failed → Device failed."""
    word = action.rpartition(".")[2]
    return _DEEDS.get(word) or word.replace("_", " ").replace("-", " ").capitalize()


def breakable(text: str) -> Markup:
    """Long names may break after their separators instead of pushing a phone's page wide."""
    broken: Markup = escape(text)
    for sign in "-._/=:":
        broken = broken.replace(sign, Markup("{}<wbr>").format(sign))
    return broken
