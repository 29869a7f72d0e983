"""The tables of docs/results.md are what their commands print from the committed results."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(DOCS))
    try:
        import fill_tables
    finally:
        sys.path.remove(str(DOCS))
    return fill_tables


@pytest.fixture(scope="module")
def filled(tables):
    return tables.filled


def test_the_tables_of_speed_are_what_was_measured(tables):
    text = (DOCS / "performance.md").read_text()
    assert text.count("<!-- speed ") >= 1
    assert tables.with_speed(text) == text


@pytest.mark.parametrize(
    ("page", "least"), [("results.md", 8), ("methods.md", 5), ("performance.md", 2)]
)
def test_every_table_is_what_its_command_prints(filled, page, least):
    text = (DOCS / page).read_text()
    assert text.count("<!-- loraweave ") >= least
    assert filled(text, DOCS.parent / "results") == text


def test_a_table_that_is_not_is_noticed(filled):
    text = (DOCS / "results.md").read_text()
    start = text.index("<!-- loraweave bench papers 1b")
    one = text[start : text.index("<!-- end -->", start) + 12]
    assert filled(one.replace("| 3.2 |", "| 3.3 |"), DOCS.parent / "results") == one


def test_every_picture_of_the_docs_is_there():
    import re

    for page in DOCS.glob("*.md"):
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / path).is_file(), (page.name, path)
