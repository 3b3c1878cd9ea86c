"""What is installed: the public names, and a list of dependencies that is whole."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import yaml

import fqgan

ROOT = Path(fqgan.__file__).parent
HOME = ROOT.parent
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def name_of(requirement: str) -> str:
    """A requirement's package, spelled as all are compared."""
    return re.split(r"[\[<>=~! ]", requirement)[0].lower().replace("_", "-")


def needs_of(name: str) -> list[str]:
    """What an installed package brings along."""
    try:
        return [each for each in metadata.requires(name) or () if "extra ==" not in each]
    except metadata.PackageNotFoundError:
        return []


def test_dir_shows_the_face_alone() -> None:
    assert dir(fqgan) == sorted([*fqgan.__all__, "__version__"])
    assert all(getattr(fqgan, name) is not None for name in dir(fqgan))
    assert (ROOT / "py.typed").is_file()


def test_every_package_that_is_imported_is_named() -> None:
    """By the core where a file imports it at its top; elsewhere by an extra, if no named package brings it along."""
    homes = metadata.packages_distributions()
    core = {name_of(each) for each in PROJECT["dependencies"]}
    named = core | {name_of(each) for requirements in EXTRAS.values() for each in requirements}
    brought = {name_of(each) for name in named - {ROOT.name} for each in needs_of(name)}
    missing = []
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            words = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            words += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for top in {word.split(".")[0] for word in words} - {ROOT.name} - sys.stdlib_module_names:
                found = {name_of(each) for each in homes.get(top, [top])}
                of_core = node in tree.body and path.relative_to(ROOT).parts[0] != "serve"
                if not found & (core if of_core else named | brought):
                    missing.append(f"{path.relative_to(HOME)}: {top}")
    assert not missing


def test_the_start_page_says_what_each_extra_is_for() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.{8,}) \|$", (HOME / "docs" / "start.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(EXTRAS)
    together = next(text for name, text in rows if name == "all")
    assert set(re.findall(r"\w+", together)) - {"and"} == set(re.findall(r"\w+", EXTRAS["all"][0])) - {"fqgan"}


def test_the_files_for_github_are_what_it_reads() -> None:
    """Of an issue form: a name, a description, and fields with a label and an id of their own."""
    forms = sorted((HOME / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
    assert [path.stem for path in forms] == ["bug", "numbers", "request"]
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"] and form["description"]
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in form["body"])
    citation = yaml.safe_load((HOME / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]
