"""A hook of MkDocs: the pages of the site that lie outside docs/ or are made from notebooks and the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import notebooks
import reference

OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "LOG.md": "log.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the repository's root -> pages."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add those pages."""
    root = Path(config.config_file_path).parent
    for name, page in OUTSIDE.items():
        text = re.sub(r"\]\(docs/", "](", (root / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=_relinked(text, "")))
    for page, text in reference.pages().items():
        files.append(File.generated(config, page, content=text))
    for path in notebooks.NOTEBOOKS.glob("*.ipynb"):
        page, pictures = notebooks.page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links of docs/ to the repository's root and to notebooks lead to their pages."""
    return _relinked(markdown, "../")


def _relinked(text: str, before: str) -> str:
    for name, page in OUTSIDE.items():
        text = text.replace(f"]({before}{name}", f"]({page}")
    return text.replace(".ipynb)", ".md)")
