"""Prints what `visionthink doctor` finds, as it finds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console

from cluster.preflight.doctor import Finding
from cluster.shell import print_json


def show_findings(findings: Iterable[Finding], *, as_json: bool) -> bool:
    """One line per check and problem; returns whether there was an error."""
    console = Console(stderr=as_json, highlight=False)
    shown = []
    for finding in findings:
        shown.append(finding)
        if not finding.errors and not finding.warnings:
            console.print(f"ok       {finding.name}", markup=False, style="green")
        for kind, lines, style in (("error", finding.errors, "bold red"), ("warning", finding.warnings, "yellow")):
            for line in lines:
                console.print(f"{kind:8} {finding.name}: {line}", markup=False, style=style, soft_wrap=True)
    num_errors = sum(len(finding.errors) for finding in shown)
    num_warnings = sum(len(finding.warnings) for finding in shown)
    console.print(f"{num_errors} errors, {num_warnings} warnings", markup=False)
    if as_json:
        print_json({"errors": num_errors, "warnings": num_warnings, "checks": [asdict(finding) for finding in shown]})
    return num_errors > 0
