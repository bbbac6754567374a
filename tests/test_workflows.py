"""Workflows do nothing of their own: what they run is a target of the Makefile."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
# What a machine of the host lacks.
SYSTEM = re.compile(r"sudo apt-get update && sudo apt-get install --yes [\w +-]+")


def steps(path: Path) -> list[dict]:
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_steps_run_targets_of_the_makefile(path: Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    for command in commands:
        if SYSTEM.fullmatch(command):
            continue
        target = re.match(r"make ([\w-]+)", command)
        assert target, command
        assert re.search(rf"^{target[1]}:", MAKEFILE, re.MULTILINE), command


def test_every_interpreter_of_the_matrix_is_a_classifier() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    pythons = matrix["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f'"Programming Language :: Python :: {python}"' in project for python in pythons)
