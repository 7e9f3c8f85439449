"""A report's work on several cores gives what one core gives, and its errors come through."""

from __future__ import annotations

import os
import signal

import pytest

from overopt_bench.errors import RunError, UserError
from overopt_bench.report import shared_out
from overopt_bench.report.shared_out import beside, each


@pytest.fixture(params=[1, 3])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(shared_out, "cores", lambda: request.param)
    return int(request.param)


def test_results_are_in_the_order_of_the_things(cores: int) -> None:
    offset = 7  # within a function that no process could be sent
    found = each(lambda number: (number**2 + offset, os.getpid()), list(range(20)), "squares")
    assert [square for square, _ in found] == [number**2 + 7 for number in range(20)]
    assert (os.getpid() in {process for _, process in found}) == (cores == 1)


def test_something_else_is_done_in_this_process(cores: int) -> None:
    kept = object()  # what no pickle could give back as itself
    found, (process, same) = beside(lambda: (os.getpid(), kept), lambda number: -number, range(9), "things")
    assert found == [-number for number in range(9)]
    assert process == os.getpid() and same is kept


def test_an_error_beside_the_things_comes_through(cores: int) -> None:
    def fail() -> None:
        raise UserError("this process cannot")

    with pytest.raises(UserError, match=r"^this process cannot$"):
        beside(fail, lambda number: number, range(9), "things")


def test_few_things_are_done_here() -> None:
    assert {*each(lambda _: os.getpid(), range(9), "things", least=10)} == {os.getpid()}


def test_an_error_comes_through_as_it_is(cores: int) -> None:
    def fail(number: int) -> int:
        if number == 5:
            raise UserError("the fifth is wrong")
        return number

    with pytest.raises(UserError, match=r"^the fifth is wrong$"):
        each(fail, list(range(10)), "things")


def test_a_killed_worker_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_out, "cores", lambda: 2)
    with pytest.raises(RunError, match="killed while it worked on figures of mini"):
        each(lambda _: os.kill(os.getpid(), signal.SIGKILL), range(4), "figures of mini")
