"""Every task of the project: ``nox -s tests``, ``nox -s demo``, ``nox -l`` for the rest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
# The tests run on the interpreters at hand, wherever they run.
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = ["3.11", "3.12", "3.13"]
SOURCES = ["src", "tests", "benchmarks", "noxfile.py"]


def find_pyenv_interpreters() -> None:
    """Put pyenv's real interpreters before its shims, which fail for versions not selected."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in PYTHONS:
        command = f"python{version}"
        try:
            subprocess.run([command, "--version"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            found = sorted(root.glob(f"versions/{version}.*/bin/{command}"))
            if found:
                os.environ["PATH"] = f"{found[-1].parent}{os.pathsep}{os.environ['PATH']}"


find_pyenv_interpreters()


def install(session: nox.Session, *groups: str, package: str | None = None) -> None:
    """Install dependency groups of pyproject.toml and, when named, the package itself."""
    needed = nox.project.dependency_groups(PROJECT, *groups) if groups else ()
    session.install(*needed, *([package] if package else []))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, the direction of imports, the changelog's fragments."""
    install(session, "lint")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)
    session.run("lint-imports", env={"PYTHONPATH": "src"})
    session.run("towncrier", "build", "--draft", "--version", "next", silent=True)


@nox.session
def types(session: nox.Session) -> None:
    """The strict type check of the source, and of what the public API shows its users."""
    install(session, "types", package=".[kestrel,native,otlp,otel]")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "caribou", "--ignoreexternal")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite. Arguments after ``--`` go to pytest: ``-- -m "not slow"``."""
    install(session, "test", package=".[local,kestrel,native,otlp,otel]")
    session.run("pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site in build/site; any broken link or name fails it."""
    install(session, "docs", package=".")
    session.run("mkdocs", "build", "--strict", "--site-dir", "build/site", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Simulated rollouts on the embedded store, and what the command line makes of them."""
    install(session, package=".[local]")
    session.run("caribou", "demo", *session.posargs)
    session.log(f"In this folder, `caribou` is {Path(session.bin, 'caribou')}")


@nox.session
def bench(session: nox.Session) -> None:
    """The measurements, beside opentelemetry-sdk. Takes minutes; wants a quiet machine."""
    install(session, "bench", package=".[local,otlp]")
    for program in ("import_time.py", "hot_path.py", "lag.py"):
        session.run("python", f"benchmarks/{program}", *session.posargs)
