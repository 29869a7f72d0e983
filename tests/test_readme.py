"""The README's commands do what it says: they are read from it and run."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraweave.cli import app
from loraweave.miniature.shipped import native_side

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
QUICK = ["--steps", "2"]  # the commands as they stand take a minute each


def shell_lines() -> list[str]:
    """The loraweave commands of the README, one a line, without comments."""
    text = "\n".join(body for kind, body in BLOCKS if kind == "sh").replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if "loraweave " in line]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, base_folder, lora_files):
    """A folder with what the commands speak of."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "path/to").mkdir(parents=True)
    (folder / "path/to/sd15").symlink_to(base_folder)
    (folder / "docs").symlink_to(ROOT / "docs")
    for name in ("cat", "dog"):
        (folder / f"{name}.safetensors").symlink_to(lora_files[name])
    return folder


def test_python_block_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = (body for kind, body in BLOCKS if kind == "python")
    scope: dict = {}
    exec(block, scope)
    assert (tmp_path / "cat-and-dog.png").stat().st_size > 1000
    out = scope["out"]
    assert out.info["concepts"] == ["blackcat", "golddog"]
    cells = native_side() // 8
    assert out.masks[0].shape == (50, 2, cells, cells)
    assert out.maps[0].shape == (10, 2, 16, 16)  # of the layout


def test_commands_run(desk, monkeypatch, quick_check):
    monkeypatch.chdir(desk)
    lines = shell_lines()
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line)[1:]
        if words == ["miniature", "check", "--quick"]:
            assert quick_check["figures"]
            continue
        if words[0] in ("generate", "compare"):
            words += QUICK
        if words[0] == "train":
            CliRunner().invoke(app, ["miniature", "draw", "--count", "2", "-o", "photos"])
            words += ["--steps", "1", "--out", "trained.safetensors"]
        if words[0] == "compare":
            words += ["--seeds", "0"]
        if words[:2] == ["miniature", "compare"]:
            words += ["--scenes", "2", "--seeds", "1", *QUICK]
        if words[:2] in (["bench", "run"], ["bench", "report"]):
            words += [*QUICK, "--scenes", "1"]
        if words[:2] == ["bench", "speed"]:
            words += ["--steps", "2", "--updates", "1", "--repetitions", "1", "--size", "64x64"]
        if words[:2] == ["bench", "papers"]:
            words += ["--results", str(ROOT / "results")]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output, result.stderr, result.exc_info)
    for name in (
        "out.png",
        "again.png",
        "park.png",
        "scene.png",
        "maps.png",
        "grid.png",
        "pairs.png",
    ):
        assert (desk / name).stat().st_size > 300, name
    assert (desk / "out.png").read_bytes() == (desk / "again.png").read_bytes()


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_link_into_the_repository_leads_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        if "/" in link or link.endswith(".md"):
            assert (ROOT / link).exists(), link
