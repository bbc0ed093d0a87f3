"""Which wheels do these requirements mean on that kind of device? pip answers, in a process of its own.

pip is used because it reads the same configuration as everything else on the machine (index, mirrors, certificates,
find-links) and because it takes any platform tag, 32-bit Arm included. It has one gap: it judges environment markers
(``; python_version < "3.12"``) by the Python that runs it and not by the target (pip issue 11664). So what it chose is
walked once more under the target's markers: what pip left out is asked for by name, what it need not have taken is
left away. No version is ever chosen here.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skerry_modules.environments import Target, Wheel, numbers
from skerry_modules.errors import InputError, ResourceError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

WORKER_NEEDS: Final = ("msgspec>=0.19", "numpy>=1.24")
"""What a worker inside the environment imports: an environment that brings them must bring versions that fit."""
RESOLVE_S: Final = 900.0
"""How long pip may take for one kind of device, seconds: it downloads what it chooses."""
ROUNDS: Final = 12
_NO_NETWORK: Final = "Retrying (Retry("
"""What pip says of a connection that failed; it says it once more for each retry that it is configured with."""
_OLDEST_GLIBC: Final = {"x86_64": 5, "i686": 5}
_LEGACY: Final = {(2, 17): "manylinux2014", (2, 12): "manylinux2010", (2, 5): "manylinux1"}
_NAMED: Final = (
    re.compile(r"No matching distribution found for (?P<package>[^\s;(]+)"),
    re.compile(r"Could not find a version that satisfies the requirement (?P<package>[^\s;(]+)"),
    re.compile(r"Cannot install (?P<package>.+?) because these package versions have conflicting"),
)


def resolve(
    requirements: Sequence[str],
    target: Target,
    profiles: Sequence[str],
    folder: Path,
    *,
    find_links: Path | None = None,
) -> list[Path]:
    """Download every wheel that the requirements need on a kind of device.

    Args:
        requirements: pinned, with markers where they have them.
        target: which kind; its wheels do not matter.
        profiles: the device classes it stands for, for the error's text.
        folder: is made; wheels are left in it.
        find_links: a folder of further wheels.

    Returns:
        The wheels that are needed, by name.

    Raises:
        InputError: ``environment.unresolvable`` with ``package``, ``tag`` and ``profiles``.
        ResourceError: ``resource.missing_dependency``, ``environment.unavailable`` where the index cannot be reached.
    """
    _check_tools()
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        roots = [Requirement(text) for text in requirements]
    except InvalidRequirement as error:
        raise _unresolvable(target, profiles, str(error).splitlines()[0], "", str(error)) from error
    markers = _markers(target)
    asked = {str(_bare(root)): None for root in roots if _holds(root, markers)}
    constraints = folder / "constraints.txt"
    for number in range(ROUNDS):
        place = folder / str(number)
        place.mkdir(parents=True)
        constraints.write_text("\n".join(WORKER_NEEDS))
        if asked:
            options = ["--constraint", str(constraints), *(["--find-links", str(find_links)] if find_links else [])]
            _pip(list(asked), options, target, profiles, place)
        found = {_name_of(path): path for path in sorted(place.iterdir())}
        needed, missing = _walk(roots, found, markers)
        if not missing:
            return [found[name] for name in sorted(needed)]
        asked |= dict.fromkeys(missing)
    raise _unresolvable(
        target, profiles, ", ".join(asked), "", "its requirements under this Python never came to an end"
    )


def download(wheels: Sequence[Wheel], target: Target, folder: Path) -> None:
    """Download exactly these wheels, by their hashes.

    Raises:
        InputError: ``environment.unavailable``.
        ResourceError: ``resource.missing_dependency``.
    """
    _check_tools()
    lines = []
    for wheel in wheels:
        name, version, *_ = wheel.file.split("-")
        lines.append(f"{name}=={version} --hash=sha256:{wheel.sha256}")
    asked = folder / "locked.txt"
    asked.write_text("\n".join(lines) + "\n")
    command = [*_command(target, folder), "--no-deps", "--require-hashes", "-r", str(asked)]
    done = _run(command)
    asked.unlink()
    if done.returncode:
        names = ", ".join(wheel.file for wheel in wheels)
        raise InputError(
            "environment.unavailable",
            f"cannot fetch {names}: {_last_words(done)}; the lock names them by hash, so another build of the same "
            "version does not do: bring the index back, or resolve again with --relock",
            files=[wheel.file for wheel in wheels],
        )


# -- pip ---------------------------------------------------------------------------------------------------------------


def _check_tools() -> None:
    for name in ("pip", "packaging"):
        if importlib.util.find_spec(name) is None:
            raise ResourceError(
                "resource.missing_dependency",
                f"cannot resolve an environment: {name} is not installed; install skerry[environments]",
                package=name,
            )


def platforms(architecture: str, glibc: str) -> list[str]:
    """Platform tags from the best to the least, as PEP 600 orders them; 32-bit Arm's own index uses the plain one."""
    major, minor = numbers(glibc)[:2]
    found = []
    for one in range(minor, _OLDEST_GLIBC.get(architecture, 17) - 1, -1):
        found.append(f"manylinux_{major}_{one}_{architecture}")
        if legacy := _LEGACY.get((major, one)):
            found.append(f"{legacy}_{architecture}")
    return [*found, f"linux_{architecture}"]


def _command(target: Target, folder: Path) -> list[str]:
    digits = target.python.replace(".", "")
    tags = [part for tag in platforms(target.architecture, target.glibc) for part in ("--platform", tag)]
    python = ["--python-version", target.python, "--implementation", "cp", "--abi", f"cp{digits}"]
    quiet = ["--disable-pip-version-check", "--no-input", "--no-color", "--progress-bar=off", "--quiet"]
    start = [sys.executable, "-m", "pip", "download", *quiet]
    return [*start, "--only-binary=:all:", *python, *tags, "--dest", str(folder)]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=RESOLVE_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            "environment.unavailable", f"cannot reach the package index: pip took more than {RESOLVE_S:g} s; try again"
        ) from error


def _pip(asked: Sequence[str], options: Sequence[str], target: Target, profiles: Sequence[str], folder: Path) -> None:
    done = _run([*_command(target, folder), *options, *asked])
    if not done.returncode:
        return
    text = done.stderr + done.stdout
    if _NO_NETWORK in text:  # or pip's last words would blame the package
        raise ResourceError(
            "environment.unavailable",
            f"cannot reach the package index that pip is configured with: {_reason(text)}; try again when it answers",
        )
    named = next((found["package"] for pattern in _NAMED if (found := pattern.search(text))), "")
    raise _unresolvable(target, profiles, named or ", ".join(asked), _last_words(done), text)


def _reason(text: str) -> str:
    line = next(line for line in text.splitlines() if _NO_NETWORK in line)
    return line.partition("broken by ")[2].strip("'")[:200] or line[:200]


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("ERROR: ").strip() for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return (lines or done.stderr.strip().splitlines() or ["pip gave no reason"])[0][:300]


def _unresolvable(target: Target, profiles: Sequence[str], package: str, words: str, whole: str) -> InputError:
    return InputError(
        "environment.unresolvable",
        f"cannot resolve {package} for {', '.join(profiles)} ({target.label}): {words or whole[:300]}; choose a "
        "version that has such a wheel, add a wheel of your own, or leave that class out of targets.profiles",
        package=package,
        tag=target.label,
        profiles=list(profiles),
    )


# -- markers under the target ------------------------------------------------------------------------------------------


def _markers(target: Target) -> dict[str, str]:
    """PEP 508's variables on the target. What cannot be known (kernel release) is empty."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{target.python}.0",
        "os_name": "posix",
        "platform_machine": target.architecture,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{target.python}.0",
        "python_version": target.python,
        "sys_platform": "linux",
    }


def _holds(requirement: Requirement, markers: Mapping[str, str], extras: frozenset[str] = frozenset()) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**markers, "extra": extra}) for extra in (*extras, ""))


def _bare(requirement: Requirement) -> Requirement:
    """Without its marker: it was judged already, and pip would judge it by the wrong Python."""
    from packaging.requirements import Requirement

    plain = Requirement(str(requirement))
    plain.marker = None
    return plain


def _walk(
    roots: Sequence[Requirement], found: Mapping[str, Path], markers: Mapping[str, str]
) -> tuple[set[str], list[str]]:
    """Distributions that are needed of those found, and requirements that nothing found meets."""
    from packaging.utils import canonicalize_name

    waiting = [root for root in roots if _holds(root, markers)]
    seen: set[tuple[str, frozenset[str]]] = set()
    needed: set[str] = set()
    missing: list[str] = []
    while waiting:
        requirement = waiting.pop()
        name, extras = str(canonicalize_name(requirement.name)), frozenset(requirement.extras)
        if name not in found:
            missing.append(str(_bare(requirement)))
            continue
        needed.add(name)
        if (name, extras) not in seen:
            seen.add((name, extras))
            waiting += [one for one in _requires(found[name]) if _holds(one, markers, extras)]
    return needed, missing


def _requires(wheel: Path) -> list[Requirement]:
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    return [Requirement(text) for text in metadata.get_all("Requires-Dist") or ()]


def _name_of(wheel: Path) -> str:
    from packaging.utils import parse_wheel_filename

    return str(parse_wheel_filename(wheel.name)[0])
