"""Who imports whom in launcher/, and the order that is allowed. tests/tools/pages.py draws it.

The sources are read with `ast`, so an import inside a function counts like one at the top.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "launcher"

# A floor a line. A package may import those on the floors below, never one above it or beside it.
ORDER = (
    ("cli",),
    ("tune", "calibrate", "desk"),
    ("sweep",),
    ("run",),
    ("report", "job", "convert"),
    ("plan",),
    ("config",),
    ("megatron", "errors"),
)
# Modules at the top whose floor is another's.
AT_THE_TOP = {
    "launcher": "errors",
    "launcher.records": "errors",
    "launcher.secrets": "errors",
    "launcher.terminal": "errors",
    "launcher.__main__": "cli",
}
MOST_FLOORS = 9  # of packages
MOST_WITHIN = 12  # floors of the modules within one
# The packages whose processes run in the training environment.
MAY_IMPORT_TORCH = ("convert", "megatron")
# What else an import may name outside them: all that a login node has to have.
LOGIN_NODE = ("jinja2", "launcher", "yaml")
# What these use where it is installed, and do without where it is not.
WHERE_INSTALLED = {
    "launcher.report.page": ("plotly",),
    "launcher.report.trackers": ("tensorboard", "wandb"),
}

Imports = Mapping[str, frozenset[str]]  # module → the modules of launcher/ that it imports


@dataclass(frozen=True)
class Import:
    """One import statement's target, as a dotted name; `names` are what is taken from it."""

    target: str
    names: tuple[str, ...]
    line: int


def statements(path: Path, module: str) -> Iterator[Import]:
    """Yield every import of a file; relative ones are made absolute."""
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            kept = len(parents) - node.level + is_package
            base = parents[:kept] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            yield Import(target, tuple(alias.name for alias in node.names), node.lineno)


def modules(launcher: Path = LAUNCHER) -> dict[str, Path]:
    """Return the file of every module, by its dotted name; a package stands for its __init__."""
    found = {}
    for path in sorted(launcher.rglob("*.py")):
        parts = path.relative_to(launcher.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


def imports(launcher: Path = LAUNCHER) -> Imports:
    """Return who imports whom. `from package import module` counts as the module."""
    files = modules(launcher)
    found = {}
    for name, path in files.items():
        targets = set()
        for each in statements(path, name):
            submodules = {f"{each.target}.{taken}" for taken in each.names} & files.keys()
            targets |= submodules
            if each.target in files and (not each.names or len(submodules) < len(each.names)):
                targets.add(each.target)
        found[name] = frozenset(targets - {name})
    return found


def package(module: str) -> str:
    """Return the package of launcher/ that a module is in; a module at the top is its own."""
    return AT_THE_TOP.get(module) or module.split(".")[1]


def cycle(graph: Imports) -> list[str]:
    """Return the modules of one cycle, the first repeated at its end; empty where there is none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if circle := search(target, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := search(module, []))), [])


def floors(graph: Imports) -> dict[str, int]:
    """Return each module's floor: 1 imports nothing, others are one above their highest import.

    The graph must have no cycle.
    """
    found: dict[str, int] = {}

    def floor(module: str) -> int:
        if module not in found:
            found[module] = 1 + max((floor(target) for target in graph[module]), default=0)
        return found[module]

    for module in graph:
        floor(module)
    return found


def upward(graph: Imports) -> list[str]:
    """Return a line for each import that the order does not allow."""
    level = {name: number for number, names in enumerate(ORDER) for name in names}
    lines = []
    for module, targets in sorted(graph.items()):
        here = package(module)
        for target in sorted(targets):
            there = package(target)
            if here != there and level[there] <= level[here]:
                lines.append(f"{module} imports {target}: {here} is not above {there}")
    return lines


def inside(graph: Imports, name: str) -> list[list[str]]:
    """Return a package's modules by their floor within it, the lowest first."""
    own = {module for module in graph if package(module) == name}
    heights = floors({module: graph[module] & own for module in own})
    return [
        sorted(module for module, height in heights.items() if height == floor)
        for floor in range(1, max(heights.values()) + 1)
    ]


def picture(graph: Imports) -> str:
    """Return the Mermaid picture of the packages, and the table of the modules in each."""
    order = [name for names in ORDER for name in names]
    arrows: dict[str, set[str]] = {name: set() for name in order}
    for module, targets in graph.items():
        arrows[package(module)] |= {package(target) for target in targets} - {package(module)}
    lines = ["```mermaid", "flowchart TD"]
    for name in order:
        # An arrow that others imply is left out.
        implied = {far for near in arrows[name] for far in _reached(arrows, near)}
        lines += [f"  {name} --> {each}" for each in order if each in arrows[name] - implied]
    lines += ["```", "", "| floor | package | its modules, each right of those that it imports |"]
    lines += ["|---|---|---|"]
    for floor, names in zip(range(len(ORDER), 0, -1), ORDER):
        for name in names:
            shown = [_readable(modules, name) for modules in inside(graph, name)]
            lines.append(f"| {floor} | {name} | {' → '.join(filter(None, shown))} |")
    return "\n".join(lines)


def _readable(names: list[str], inside_of: str) -> str:
    """Return modules' names within a package; an __init__ of no more than a docstring is none."""
    files = modules()
    return ", ".join(
        name.removeprefix("launcher.").removeprefix(f"{inside_of}.")
        for name in names
        if files[name].name != "__init__.py"
        or len(ast.parse(files[name].read_text(encoding="utf-8")).body) > 1
    )


def _reached(arrows: Mapping[str, set[str]], name: str) -> set[str]:
    return {far for near in arrows[name] for far in (near, *_reached(arrows, near))}
