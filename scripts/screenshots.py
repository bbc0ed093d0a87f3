#!/usr/bin/env python3
"""Take the README's pictures of the console from a running hub into ``docs/images/``.

    scripts/screenshots.py [--url http://127.0.0.1:8420] [--out docs/images]

Nothing is staged: the pages are what that hub shows now, so run it while a demo or a fleet is at work. The rollout, the
endpoint and the device shown are the newest rollout, the first endpoint and the first device that serves. Needs
Chromium and Playwright (``make setup``, ``apt-get install chromium``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
SETTLE_MS = 1_500  # charts drawn, first live update done


def get(url: str) -> Any:
    headers = {"Accept": "application/json"}
    if token := os.environ.get("SKERRY_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def pictures(url: str) -> list[tuple[str, str, str, dict[str, int]]]:
    """(file, path, colour scheme, viewport) of every picture that this hub can give."""
    found = [
        ("console-dark.png", "/", "dark", DESKTOP),
        ("console-phone.png", "/", "light", PHONE),
    ]
    rollouts = get(f"{url}/api/v1/rollouts?limit=1")["items"]
    if rollouts:
        found.append(("rollout-dark.png", f"/rollouts/{rollouts[0]['id']}", "dark", DESKTOP))
    endpoints = get(f"{url}/api/v1/endpoints?limit=1")["items"]
    if endpoints:
        found.append(("endpoint-dark.png", f"/endpoints/{endpoints[0]['name']}", "dark", DESKTOP))
    devices = get(f"{url}/api/v1/devices?limit=100")["items"]
    if devices:
        shown = next((device for device in devices if device.get("online")), devices[0])
        found.append(("device-light.png", f"/devices/{shown['id']}", "light", DESKTOP))
    return found


def take(url: str, out: Path) -> None:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("cannot take pictures: Chromium is not on this machine; get it with: apt-get install chromium")
    out.mkdir(parents=True, exist_ok=True)
    token = os.environ.get("SKERRY_TOKEN")
    credentials = {"username": "skerry", "password": token} if token else None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, headless=True, args=["--no-sandbox", "--disable-gpu"]
        )
        for name, path, scheme, viewport in pictures(url):
            context = browser.new_context(
                viewport=viewport,  # type: ignore[arg-type]
                color_scheme=scheme,  # type: ignore[arg-type]
                device_scale_factor=1 if viewport is DESKTOP else 1.5,  # a clone of the repository stays small
                is_mobile=viewport is PHONE,
                http_credentials=credentials,  # type: ignore[arg-type]
            )
            page = context.new_page()
            page.goto(url + path)
            page.locator("html[data-live=live], html[data-live=off]").wait_for(state="attached")
            page.wait_for_timeout(SETTLE_MS)
            page.screenshot(path=out / name)
            print(f"{out / name}  ({path}, {scheme})")  # noqa: T201
            context.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("SKERRY_URL", "http://127.0.0.1:8420"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    arguments = parser.parse_args()
    take(arguments.url.rstrip("/"), arguments.out)


if __name__ == "__main__":
    main()
