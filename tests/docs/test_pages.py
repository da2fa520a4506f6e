"""The pages lead somewhere, name what exists, and are as long as they may be; code that they show is code that is tested."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from svc.consumer.drain import Drain
from svc.maintenance.gate import Gate
from svc.settings import Settings, variable
from tests.docs.pages import PAGES, ROOT, WRITTEN, Block, anchors, blocks, prose


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_the_readme_takes_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in anchors(there), f"{target}: there is no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        links = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))}
        there = {(page.parent / link).resolve() for link in links if link.endswith(".md")}
        new |= {path for path in there if path.exists()} - reached
    assert set(PAGES) - {ROOT / "docs" / "index.md"} <= reached


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_path_that_is_named_exists(page: Path) -> None:
    """Paths from the top of the repository, in code spans and in comments of blocks; `*` stands for anything."""
    text = page.read_text("utf-8") if page in WRITTEN else prose(page)
    named = re.findall(r"(?<![\w./-])((?:svc|tests|docs|docker|examples|\.ci)/[\w./*-]*\w|compose\.yml)(?![\w(])", text)
    missing = [path for path in named if not any(ROOT.glob(path)) and path != "docs/_site"]
    assert not missing


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_no_page_names_a_setting_that_there_is_not(page: Path) -> None:
    known = {variable(field) for field in Settings.model_fields}
    named = set(
        re.findall(
            r"`((?:SQS|ETCD|HTTP|MAX|DRAIN|BREAKER|RETRY|MESSAGE|INSTANCE|LOG|CLOUDWATCH)_[A-Z_]+)",
            page.read_text("utf-8"),
        )
    )
    assert named <= known


def test_every_setting_is_explained_somewhere_or_explains_itself() -> None:
    """Settings that change what an operator sees are on a page of their reader, not in the reference alone."""
    text = "".join(page.read_text("utf-8") for page in WRITTEN)
    missing = {variable(field) for field in Settings.model_fields if variable(field) not in text}
    assert len(missing) < 12, missing


def test_every_figure_of_the_drain_report_is_explained() -> None:
    page = (ROOT / "docs" / "maintenance.md").read_text("utf-8")
    figures = [f"sqs.{field.name}" for field in fields(Drain) if not field.name.endswith("_count")]
    figures += [f"http.{name}" for name in Gate().drain()]
    assert [name for name in figures if f"`{name}`" not in page] == []


def test_every_suite_is_in_the_table_of_the_house() -> None:
    page = (ROOT / "docs" / "contribute.md").read_text("utf-8")
    suites = [path.parent.name for path in (ROOT / "svc").glob("*/__init__.py")]
    assert [name for name in suites if f"`svc/{name}/`" not in page] == []


def file_of(block: Block) -> str:
    """The name in its first line, or one that there is not."""
    named = re.match(r"# (\w+\.py)\n", block.text)
    return named[1] if named else "no file"


def test_examples_on_pages_are_the_files_of_examples() -> None:
    """A block whose first line names a file of examples/ is that file."""
    shown = set()
    for block in blocks("python"):
        name = file_of(block)
        if (ROOT / "examples" / name).exists():
            assert block.text == (ROOT / "examples" / name).read_text("utf-8"), f"{block.page}:{block.line}"
            shown.add(name)
    modules = {path.name for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("test_")}
    assert modules <= shown
    assert {f"test_{name}" for name in modules} <= {path.name for path in (ROOT / "examples").glob("test_*.py")}


def test_every_block_of_python_is_an_example_or_runs_elsewhere() -> None:
    """docs/test-a-processor.md runs in tests/testing/test_harness.py."""
    for block in blocks("python"):
        if block.page.startswith("docs/reference/") or block.page == "docs/test-a-processor.md":
            continue
        assert (ROOT / "examples" / file_of(block)).exists(), f"{block.page}:{block.line} is run by no test"
