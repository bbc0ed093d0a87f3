"""The world's command: one seed told, many run, a broken one named so that it can be seen again."""

from __future__ import annotations

import json

import pytest

from skerry_simulators.cli import main
from skerry_simulators.world import truth


def test_one_seed_tells_its_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "--seed", "7", "--trace"]) == 0
    told = capsys.readouterr().out
    assert "seed 7: every rule held" in told
    assert "boots (1)" in told


def test_many_seeds_over_processes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "--seeds", "0..24", "--jobs", "2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["worlds"], summary["broken"]) == (24, {})


def test_a_broken_world_is_named_with_the_way_to_see_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: truth.Truth) -> None:
        raise truth.Violation("broken on purpose")

    monkeypatch.setattr(truth.Truth, "final", broken)
    assert main(["world", "--seeds", "3..5", "--jobs", "1"]) == 1
    assert "skerry-sim world --seed 3 --trace" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["5", "9..3", "a..b"])
def test_seeds_that_cannot_be_meant_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["world", "--seeds", text])
    assert "give two numbers, as in 0..2000" in capsys.readouterr().err
