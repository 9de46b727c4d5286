"""`make audit`: known vulnerabilities of the pinned dependencies, and the licences of what is installed.

    audit.py --pip-audit PROGRAM --sbom FILE CONSTRAINTS [--require]

Exit status 0: nothing that .ci/audit.toml does not give a reason for. Also 0, and said in so many words, where no
vulnerability service is reachable (1 with --require). 1: findings. Standard library only.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("audit.toml")
TIMEOUT_S = 45
NOT_AUDITED = "NOT AUDITED: no vulnerability service answers from here"
_UNREACHABLE = ("ConnectionError", "Failed to resolve", "timed out", "Timeout", "ServiceError", "Max retries")


@dataclass(frozen=True)
class Vulnerabilities:
    """audited: packages that the service knows. unknown: those that it does not. found: (package, id, what to do)."""

    audited: int
    unknown: list[str]
    found: list[tuple[str, str, str]]


def read_vulnerabilities(report: Mapping[str, Any], accepted: Mapping[str, str]) -> Vulnerabilities:
    """pip-audit's report without what is accepted, by id or alias.

    A service that is not there, behind a mirror that answers 404, makes pip-audit skip every package and say that none
    is vulnerable: then `audited` is 0.
    """
    unknown, found, audited = [], [], 0
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
            continue
        audited += 1
        for finding in package["vulns"]:
            if not accepted.keys() & {finding["id"], *finding.get("aliases", [])}:
                fixed = ", ".join(finding.get("fix_versions", [])) or "none yet"
                found.append((f"{package['name']} {package['version']}", finding["id"], f"mended in: {fixed}"))
    return Vulnerabilities(audited, unknown, found)


def wrong_licences(sbom: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(package, its licence) of what neither the list of licences nor a package's own reason allows."""
    allowed, words = set(config["licences"]["allowed"]), config["licences"]["words"]
    found = []
    for component in sbom.get("components", []):
        if component["name"] in config["packages"]:
            continue
        spdx, said = [], []
        for entry in component.get("licenses", []):
            own = entry.get("license", {})
            if text := entry.get("expression") or own.get("id"):
                spdx.append(text)
            else:
                said.append(own.get("name", ""))
        named = spdx or [words.get(text, text) for text in said]
        if not named or not all(is_allowed(text, allowed) for text in named):
            found.append((component["name"], " and ".join(named) or "not said"))
    return found


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """An SPDX expression: every part of an AND, one of an OR; a licence WITH an exception is one of its own."""
    words = expression.replace("(", " ( ").replace(")", " ) ").split()
    result = _any(iter_words := _Words(words), allowed)
    return result and iter_words.next is None


class _Words:
    def __init__(self, words: list[str]) -> None:
        self._words: Iterator[str] = iter(words)
        self.next: str | None = next(self._words, None)

    def take(self) -> str:
        word, self.next = self.next, next(self._words, None)
        return word or ""


def _any(words: _Words, allowed: set[str]) -> bool:
    result = _every(words, allowed)
    while words.next == "OR":
        words.take()
        result = _every(words, allowed) or result
    return result


def _every(words: _Words, allowed: set[str]) -> bool:
    result = _one(words, allowed)
    while words.next == "AND":
        words.take()
        result = _one(words, allowed) and result
    return result


def _one(words: _Words, allowed: set[str]) -> bool:
    if (word := words.take()) == "(":
        result = _any(words, allowed)
        return words.take() == ")" and result
    if words.next == "WITH":
        word = f"{word} {words.take()} {words.take()}"
    return word in allowed


def run_pip_audit(program: str, constraints: str) -> tuple[dict[str, Any] | None, str]:
    """Its report, and what it said; no report when no service could be asked. Raises RuntimeError for anything else."""
    command = [program, "-r", constraints, "--no-deps", "--disable-pip", "-f", "json"]
    command += ["--timeout", "5", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)  # noqa: S603  # our arguments
    except subprocess.TimeoutExpired:
        return None, f"it did not end within {TIMEOUT_S} s"
    if done.stdout.lstrip().startswith("{"):
        return json.loads(done.stdout), done.stderr
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if any(word in done.stderr for word in _UNREACHABLE):
        return None, last
    raise RuntimeError(f"pip-audit ended with {done.returncode}: {last}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Vulnerabilities and licences of dependencies.")
    parser.add_argument("--pip-audit", required=True)
    parser.add_argument("--sbom", required=True, type=Path)
    parser.add_argument("--require", action="store_true", help="fail where no vulnerability service is reachable")
    parser.add_argument("constraints")
    given = parser.parse_args(arguments)
    config = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    failed = False

    sbom = json.loads(given.sbom.read_text(encoding="utf-8"))
    licences = wrong_licences(sbom, config)
    say(f"{len(sbom['components'])} components, their licences: {len(licences)} to be looked at ({given.sbom})")
    for name, licence in licences:
        say(f"  {name}: {licence} is not in .ci/audit.toml")
        failed = True

    report, said = run_pip_audit(given.pip_audit, given.constraints)
    result = None if report is None else read_vulnerabilities(report, config["vulnerabilities"])
    if result is None or not result.audited:
        say(f"{NOT_AUDITED} ({said.strip().splitlines()[-1] if result is None and said.strip() else 'nothing known'})")
        return int(failed or given.require)
    say(f"{result.audited} pinned packages audited, {len(result.found)} with findings")
    for package, identifier, advice in result.found:
        say(f"  {package}: {identifier} ({advice})")
        failed = True
    if result.unknown:
        say(f"  not known to the service: {', '.join(result.unknown)}")
    return int(failed)


def say(line: str) -> None:
    sys.stdout.write(f"audit: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
