"""The docs say what the code does: reference pages are up to date, links lead somewhere, settings are told."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("modules/examples/*/*.md")])


def reference() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: make() for name, make in module.PAGES.items()}


@pytest.mark.parametrize("name", ["docs/errors.md", "docs/settings.md"])
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    assert (ROOT / name).read_text() == reference()[name], "run: python scripts/reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of a build machine, in any file that is told to people or run."""
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split() if listed.returncode == 0 else []
    pattern = re.compile(r"(?<![A-Za-z0-9_.-])/(work|farm|root)/")
    for name in names:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".sh", ".txt", "") and path.is_file():
            assert not pattern.search(path.read_text(errors="ignore")), f"{name} names a path of one machine"
