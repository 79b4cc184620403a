"""How often the worker tells of its steps."""

from __future__ import annotations

import pytest

from pipelines.watch import StepReport
from server.worker.protocol import Run, Step
from server.worker.steps import Steps


@pytest.mark.parametrize(
    ("step_s", "told"),
    [(0.02, [1, 6, 11, 12]), (0.06, [1, 3, 5, 7, 9, 11, 12]), (0.5, list(range(1, 13)))],
)
def test_the_first_and_the_last_step_and_ten_a_second_between(step_s: float, told: list[int]) -> None:
    sent: list[Step] = []
    moments = iter([step * step_s for step in range(12)])
    steps = Steps(Run(job="a", attempt=2, request={}), sent.append, lambda: next(moments))
    for step in range(1, 13):
        steps.report(StepReport(step, 12, step_s))
    assert [step.step for step in sent] == told
    assert {(step.job, step.attempt, step.steps, step.step_s) for step in sent} == {("a", 2, 12, step_s)}
