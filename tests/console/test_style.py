"""The design's tokens: readable in light and dark, the same in both ways into the dark."""

from __future__ import annotations

import re

import pytest

from skerry_hub.console.templating import STATIC

CSS = (STATIC / "console.css").read_text()

TEXT = 4.5  # WCAG 2.2, 1.4.3, level AA
GRAPHICS = 3.0  # 1.4.11: borders of controls, focus rings, parts of charts

TONES = ("ok", "busy", "warn", "bad", "odd", "idle", "info")
PAIRS = [
    *(
        (text, back, TEXT)
        for text in ("text", "text-2", "accent")
        for back in ("page", "surface", "sunken", "side", "hover")
    ),
    *((tone, f"{tone}-soft", TEXT) for tone in TONES),
    ("bad", "surface", TEXT),
    ("accent", "accent-soft", TEXT),
    ("on-accent", "accent", TEXT),
    ("on-accent", "accent-hover", TEXT),
    *((edge, back, GRAPHICS) for edge in ("border-strong", "focus") for back in ("page", "surface")),
    *((line, "surface", GRAPHICS) for line in ("line-1", "line-2", "line-3", "line-4", "line-bad")),
]


def block(selector: str) -> dict[str, str]:
    body = CSS.split(selector, 1)[1].split("{", 1)[1].split("}", 1)[0]
    return dict(re.findall(r"--([a-z0-9-]+):\s*([^;]+);", body))


LIGHT = block(":root {".removesuffix(" {"))
DARK = {**LIGHT, **block(':root[data-theme="dark"]')}


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_ruler_is_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # the textbook's grey that just passes


@pytest.mark.parametrize(("theme", "tokens"), [("light", LIGHT), ("dark", DARK)])
@pytest.mark.parametrize(("text", "back", "least"), PAIRS, ids=[f"{text}-on-{back}" for text, back, _ in PAIRS])
def test_everyone_can_read_it(theme: str, tokens: dict[str, str], text: str, back: str, least: float) -> None:
    got = contrast(tokens[text], tokens[back])
    assert got >= least, f"{theme}: --{text} {tokens[text]} on --{back} {tokens[back]} is {got:.2f}:1"


def test_both_ways_into_the_dark_are_one() -> None:
    assert block(':root:not([data-theme="light"])') == block(':root[data-theme="dark"]')
    assert set(block(':root[data-theme="dark"]')) <= set(LIGHT)


def test_every_token_that_is_used_is_declared() -> None:
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", CSS))
    inner = {"tone", "tone-soft", "fill"}  # set by the tone-* and fill-* classes
    assert used <= set(LIGHT) | inner


def test_motion_can_be_turned_off_and_focus_is_seen() -> None:
    assert "prefers-reduced-motion: reduce" in CSS
    assert ":focus-visible { outline: 2px solid var(--focus)" in CSS
    assert "outline: none" not in CSS.replace("main:focus { outline: none; }", "")
