"""What Megatron and the hardware demand of a job, each demand one small function.

A rule takes a `Case` and yields a line for each thing that is wrong; its docstring names the place
in Megatron-LM that refuses. Read off release 0.19: megatron/training/arguments.py (validate_args),
megatron/core/transformer/transformer_config.py (TransformerConfig), megatron/core/parallel_state.py
(initialize_model_parallel) and the model's own code. Every module sorts its rules into

    ERRORS      Megatron refuses the job when it starts
    RUN_TIME    Megatron starts and fails later: in the first step, or in a kernel
    WARNINGS    the job runs, but surely not as it was meant
"""

from __future__ import annotations

from launcher.plan import Finding
from launcher.plan.rules import (
    batch,
    environment,
    execution,
    faults,
    layout,
    model,
    moe,
    parallelism,
    precision,
    ramp,
    rare,
    start,
)
from launcher.plan.rules.case import Case, Rule, Unreadable

TOPICS = (
    parallelism,
    batch,
    layout,
    model,
    moe,
    precision,
    execution,
    environment,
    faults,
    ramp,
    rare,
    start,
)
ERRORS: tuple[Rule, ...] = tuple(rule for topic in TOPICS for rule in topic.ERRORS)
RUN_TIME: tuple[Rule, ...] = tuple(rule for topic in TOPICS for rule in topic.RUN_TIME)
WARNINGS: tuple[Rule, ...] = tuple(rule for topic in TOPICS for rule in topic.WARNINGS)

__all__ = ["ERRORS", "RUN_TIME", "WARNINGS", "Case", "Rule", "check", "name"]


def check(case: Case) -> list[Finding]:
    """Return what the rules find, errors first."""
    found = [
        Finding("error", message, name(rule))
        for rule in (*ERRORS, *RUN_TIME)
        for message in _say(rule, case)
    ]
    return found + [
        Finding("warning", message, name(rule)) for rule in WARNINGS for message in _say(rule, case)
    ]


def name(rule: Rule) -> str:
    """Return what a rule is called in a finding: its topic and its function."""
    return f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}"


def _say(rule: Rule, case: Case) -> list[str]:
    try:
        return list(rule(case))
    except (Unreadable, ValueError, ArithmeticError, LookupError):
        # A value that it cannot read is the parser's to refuse, or another rule's.
        return []
