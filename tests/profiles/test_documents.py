"""What the pages on profiles and boards tell is what the files and the code say."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from skerry_agent.engines.pynq_packing import Options
from skerry_modules import profiles
from skerry_modules.errors import CODES
from skerry_simulators.fpga.faults import Fault

DOCS = Path(__file__).parents[2] / "docs"
PROFILES = (DOCS / "firmware-profiles.md").read_text()
FPGA = (DOCS / "fpga.md").read_text()


@pytest.mark.parametrize("name", sorted(profiles.shipped()))
def test_the_table_of_classes(name: str) -> None:
    profile = profiles.get(name)
    row = next(line for line in PROFILES.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, engines, limit, accelerators, _ = (cell.strip() for cell in row.split("|"))
    assert re.sub(r" \([^)]*\)", "", engines).split(", ") == [engine.name for engine in profile.engines]
    assert limit == f"{profile.limits.memory_mb:,} MB"
    assert tuple(filter(None, re.sub(r" \(.*\)$", "", accelerators).split(", "))) == profile.accelerators


def test_the_profile_on_the_page_is_one() -> None:
    text = next(block for block in re.findall(r"```toml\n(.*?)```", PROFILES, re.DOTALL))
    profile = profiles.parse(text, source="firmware-profiles.md")
    shown = set(re.findall(r"^([a-z_]+) =", text, re.MULTILINE))
    assert shown <= {
        name for part in (profile, *profile.engines, profile.limits, profile.link) for name in part.__struct_fields__
    }


def test_every_reason_is_explained() -> None:
    reasons = {code for code in CODES if code.startswith("unschedulable.")}
    assert set(re.findall(r"`(unschedulable\.[a-z_]+)`", PROFILES)) == reasons


def test_every_code_of_the_board_is_explained() -> None:
    codes = {code for code in CODES if code.startswith("board.")}
    assert set(re.findall(r"^\| `(board\.[a-z_]+)`", FPGA, re.MULTILINE)) == codes


def test_every_option_of_the_engine_is_explained_with_its_default() -> None:
    table = FPGA[FPGA.index("| option |") : FPGA.index("[modules/examples/digits-fpga]")]
    told = {}
    for line in re.findall(r"^\| `.*", table, re.MULTILINE):
        _, named, given, _, _ = line.split("|")
        names, defaults = re.findall(r"`([a-z_]+)`", named), [part.strip("` ") for part in given.split(",")]
        told.update(dict(zip(names, defaults + ["0"] * (len(names) - len(defaults)), strict=True)))
    fields = {field.name: field.default for field in msgspec.structs.fields(Options)}
    assert told.keys() == fields.keys()
    for name, default in fields.items():
        text = told[name].replace("−", "-")
        if isinstance(default, bool):
            assert text == str(default).lower(), name
        elif isinstance(default, str):
            assert text == default, name
        else:
            assert float(int(text, 16) if text.startswith("0x") else text) == default, name


def test_every_fault_is_named() -> None:
    assert all(f"`{fault}`" in FPGA for fault in Fault)
