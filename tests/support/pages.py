"""Pages of HTML: what is in them without a browser, and what a headless Chromium makes of them."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "Elements", "data_of", "driven", "elements", "printed_pages"]

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# Run once every figure is drawn; what it returns replaces the page.
_DRIVER = """<script>(async () => {
  const drawn = async () => {
    while (document.documentElement.dataset.drawn !== "all") await new Promise((done) => setTimeout(done, 20));
  };
  let found;
  try { await drawn(); found = await (async () => { SCRIPT })(); } catch (error) { found = String(error); }
  document.body.replaceChildren(Object.assign(document.createElement("pre"),
    { id: "found", textContent: JSON.stringify(found) }));
})();</script></body>"""


@dataclass
class Elements(HTMLParser):
    """The elements of a page: names with attributes, and the text of all but scripts and styles."""

    found: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    inside: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


def elements(page: str) -> Elements:
    parser = Elements()
    parser.feed(page)
    parser.close()
    return parser


def data_of(page: str) -> dict[str, Any]:
    """Return what the page's script draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    decoded: dict[str, Any] = json.loads(found[1], parse_constant=refused)
    return decoded


def _chromium(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run Chromium without a network; no tab of it is seen."""
    offline = ("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking")
    quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}")
    spoken = ("--enable-logging=stderr", "--virtual-time-budget=30000")
    return subprocess.run(
        [CHROMIUM, *quiet, *offline, *spoken, *options], capture_output=True, text=True, timeout=120, check=True
    )


def _console(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def driven(page: str, script: str, folder: Path) -> tuple[Any, list[str]]:
    """Return what a script finds on a page, of which a copy without its policy is opened, and the lines on its console.

    The script is the body of a function; `await drawn()` waits until every figure is drawn.
    """
    copy = folder / "driven.html"
    copy.write_text(_POLICY.sub("", page).replace("</body>", _DRIVER.replace("SCRIPT", script)), encoding="utf-8")
    done = _chromium(folder, "--window-size=1000,2000", "--dump-dom", copy.as_uri())
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:]
    return json.loads(html.unescape(found[1])), _console(done)


def printed_pages(page: str, folder: Path) -> tuple[int, list[str]]:
    """Print a page as it is, and return the number of sheets and the lines on its console."""
    source, target = folder / "printed.html", folder / "printed.pdf"
    source.write_text(page, encoding="utf-8")
    done = _chromium(folder, f"--print-to-pdf={target}", source.as_uri())
    return len(re.findall(rb"/Type\s*/Page\b", target.read_bytes())), _console(done)
