"""launcher/ imports downwards only."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.tools import imports

GRAPH = imports.imports()


def test_every_package_has_its_place_in_the_order():
    assert {imports.package(module) for module in GRAPH} == {
        name for names in imports.ORDER for name in names
    }


def test_no_import_goes_upwards():
    assert imports.upward(GRAPH) == []


def test_no_cycle():
    assert imports.cycle(GRAPH) == []


def test_packages_lie_on_few_floors():
    assert len(imports.ORDER) <= imports.MOST_FLOORS


@pytest.mark.parametrize("name", [name for names in imports.ORDER for name in names])
def test_the_modules_of_a_package_lie_on_few_floors(name: str):
    assert len(imports.inside(GRAPH, name)) <= imports.MOST_WITHIN


def test_a_login_node_needs_no_more_than_it_has():
    """Outside convert/ and megatron/: the standard library, PyYAML and Jinja2, never torch."""
    allowed = {*sys.stdlib_module_names, *imports.LOGIN_NODE}
    found = [
        f"{module}:{each.line} imports {each.target}"
        for module, path in imports.modules().items()
        if imports.package(module) not in imports.MAY_IMPORT_TORCH
        for each in imports.statements(path, module)
        if each.target.split(".")[0] not in {*allowed, *imports.WHERE_INSTALLED.get(module, ())}
    ]
    assert found == []


@pytest.fixture
def tree(tmp_path: Path):
    """Return a function that writes a small launcher/ and reads its imports."""

    def write(**texts: str) -> imports.Imports:
        for name, text in texts.items():
            path = tmp_path / "launcher" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return imports.imports(tmp_path / "launcher")

    return write


@pytest.mark.parametrize(
    "statement",
    [
        "from launcher.job import build",
        "from launcher.job.build import build",
        "import launcher.job.build",
        "from ..job import build",
        "from ..job.build import build",
        "def late():\n    from launcher.job import build",
        "if TYPE_CHECKING:\n    from launcher.job import build",
    ],
)
def test_an_upward_import_is_found_in_every_form(statement: str, tree):
    graph = tree(plan__shape=statement, job__build="")
    assert imports.upward(graph) == [
        "launcher.plan.shape imports launcher.job.build: plan is not above job"
    ]


def test_a_sideways_import_is_found(tree):
    assert imports.upward(tree(report__page="import launcher.job.build", job__build=""))


def test_cycles_and_floors(tree):
    graph = tree(plan__a="from launcher.plan import b", plan__b="from . import c", plan__c="")
    assert imports.cycle(graph) == []
    assert imports.floors(graph)["launcher.plan.a"] == 3
    graph = tree(plan__c="from launcher.plan.a import x")
    assert imports.cycle(graph) == [
        "launcher.plan.a", "launcher.plan.b", "launcher.plan.c", "launcher.plan.a"
    ]  # fmt: skip
