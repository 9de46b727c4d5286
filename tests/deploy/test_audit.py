"""`make audit`: what it finds in a report and in an SBOM, and what it says where nobody can be asked."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["audit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit = load()
SKIPPED = {"name": "private", "skip_reason": "Dependency not found on PyPI and could not be audited"}
SAFE = {"name": "safe", "version": "1.0", "vulns": []}
UNSAFE = {
    "name": "unsafe",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1", "3.0"], "description": "bad"}],
}


def write_program(path: Path, says: str, complains: str = "", status: int = 0) -> Path:
    """A program in place of pip-audit."""
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"sys.stdout.write({says!r})\nsys.stderr.write({complains!r})\nsys.exit({status})\n"
    )
    path.chmod(0o755)
    return path


def run(tmp_path: Path, program: Path, *more: str, components: list[dict[str, Any]] | None = None) -> int:
    sbom = tmp_path / "sbom.json"
    sbom.write_text(json.dumps({"components": components or []}))
    return int(audit.main(["--pip-audit", str(program), "--sbom", str(sbom), *more, "constraints.txt"]))


@pytest.mark.parametrize(
    ("expression", "good"),
    [
        ("MIT", True),
        ("GPL-3.0", False),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("MIT AND GPL-3.0", False),
        ("GPL-3.0 OR MIT", True),
        ("(GPL-3.0 OR GPL-2.0) AND MIT", False),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("MIT WITH LLVM-exception", False),
        ("MIT MIT", False),
        ("(MIT", False),
        ("", False),
    ],
)
def test_an_expression_is_allowed_part_by_part(expression: str, good: bool) -> None:
    allowed = {"MIT", "MPL-2.0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
    assert audit.is_allowed(expression, allowed) is good


def test_what_is_known_is_found_unless_there_is_a_reason() -> None:
    report = {"dependencies": [SAFE, SKIPPED, UNSAFE]}
    found = audit.read_vulnerabilities(report, {})
    assert (found.audited, found.unknown) == (2, ["private"])
    assert found.found == [("unsafe 2.0", "PYSEC-1", "mended in: 2.1, 3.0")]
    assert audit.read_vulnerabilities(report, {"PYSEC-1": "reason"}).found == []
    assert audit.read_vulnerabilities(report, {"CVE-1": "reason"}).found == []


def test_findings_fail_and_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = write_program(tmp_path / "pip-audit", json.dumps({"dependencies": [SAFE, UNSAFE]}), status=1)
    assert run(tmp_path, program) == 1
    assert "unsafe 2.0: PYSEC-1 (mended in: 2.1, 3.0)" in capsys.readouterr().out


def test_nothing_found_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = write_program(tmp_path / "pip-audit", json.dumps({"dependencies": [SAFE, SKIPPED]}))
    assert run(tmp_path, program) == 0
    said = capsys.readouterr().out
    assert "1 pinned packages audited, 0 with findings" in said
    assert "not known to the service: private" in said
    assert audit.NOT_AUDITED not in said


@pytest.mark.parametrize(
    ("says", "complains", "status"),
    [
        (json.dumps({"dependencies": [SKIPPED, SKIPPED]}), "No known vulnerabilities found", 0),
        ("", "requests.exceptions.ConnectionError: Failed to resolve", 1),
    ],
)
def test_where_nobody_can_be_asked_that_is_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: str, complains: str, status: int
) -> None:
    """Above all where pip-audit itself says that there are no vulnerabilities."""
    program = write_program(tmp_path / "pip-audit", says, complains, status)
    assert run(tmp_path, program) == 0
    assert audit.NOT_AUDITED in capsys.readouterr().out
    assert run(tmp_path, program, "--require") == 1


def test_another_failure_is_one(tmp_path: Path) -> None:
    program = write_program(tmp_path / "pip-audit", "", "usage: no such option", 2)
    with pytest.raises(RuntimeError, match="no such option"):
        run(tmp_path, program)


@pytest.mark.parametrize(
    ("licences", "good"),
    [
        ([{"license": {"id": "MIT"}}], True),
        ([{"expression": "MIT OR GPL-3.0-only"}], True),
        ([{"license": {"id": "AGPL-3.0-only"}}], False),
        ([{"license": {"name": "License :: OSI Approved :: BSD License"}}], True),
        ([{"license": {"name": "License :: Other/Proprietary License"}}], False),
        ([{"license": {"id": "MIT"}}, {"license": {"name": "License :: DFSG approved"}}], True),
        ([], False),
    ],
)
def test_a_licence_that_is_not_listed_fails(tmp_path: Path, licences: list[dict[str, Any]], good: bool) -> None:
    program = write_program(tmp_path / "pip-audit", json.dumps({"dependencies": [SAFE]}))
    component = {"name": "thing", "licenses": licences}
    assert run(tmp_path, program, components=[component]) == int(not good)


def test_a_package_with_a_reason_of_its_own_passes(tmp_path: Path) -> None:
    program = write_program(tmp_path / "pip-audit", json.dumps({"dependencies": [SAFE]}))
    assert run(tmp_path, program, components=[{"name": "psycopg", "licenses": []}]) == 0
