"""Takes pages from outside `docs/` into the site, and keeps links right that leave it.

The pages here link to files of the repository, as a code host shows them. In the site such a link becomes one to the
page that was taken in, or plain text where the file is no page.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TAKEN_IN = {
    "manifests/README.md": "manifests.md",
    "docker/README.md": "docker.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside."""
    for source, name in TAKEN_IN.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links of one page fit the site."""
    name = page.file.src_uri
    source = next((source for source, taken in TAKEN_IN.items() if taken == name), f"docs/{name}")

    def fitted(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith("docs/") and files.get_file_from_path(path.removeprefix("docs/")):
            inside = path.removeprefix("docs/")
        elif path in TAKEN_IN:
            inside = TAKEN_IN[path]
        else:
            return text if (ROOT / path).exists() else match[0]  # what is nowhere stays, and fails the build
        return f"[{text}]({os.path.relpath(inside, posixpath.dirname(name) or '.')}{anchor})"

    return _LINK.sub(fitted, markdown)
