"""Tests that are no plain functions: what cannot have our fixtures fails in one line, and alone."""

from __future__ import annotations

import json

from inner import Suite

KINDS = """
import unittest
import pytest

class TestCaseWithAFixture(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _perf(self, llm_perf):
        self.perf = llm_perf

    def test_it(self):
        self.perf.gate("tpot")

@pytest.mark.usefixtures("llm_engine")
class TestCaseThatUses(unittest.TestCase):
    def test_it(self):
        pass

class TestCaseOfOthers(unittest.TestCase):
    def test_unrelated(self):
        pass

def test_dynamic(request):
    request.getfixturevalue("llm_parity").check()

@pytest.fixture
def late(request):
    return request.getfixturevalue("llm_perf")

def test_late(late):
    late.gate("tpot")

def documented():
    '''
    >>> getfixture("llm_engine").backend
    'sim'
    '''

@pytest.fixture(scope="module")
def wide(llm_perf):
    return llm_perf

def test_wide(wide):
    wide.gate("tpot")

@pytest.mark.parametrize("llm_backend", ["sim"], indirect=True)
def test_indirect(llm_perf):
    llm_perf.gate("tpot")

@pytest.mark.parametrize("other, llm_workload", [(1, "b1")])
def test_direct(llm_engine, llm_workload, other):
    pass

async def test_async(llm_perf):
    llm_perf.gate("tpot")

class TestClass:
    @pytest.fixture(autouse=True)
    def _perf(self, llm_perf):
        self.perf = llm_perf

    def test_it(self):
        self.perf.gate("tpot")

@pytest.fixture(scope="session")
def wide_backend(llm_backend):
    return llm_backend

def test_wide_backend(wide_backend):
    assert wide_backend == "sim"

def test_subtests(llm_perf, subtests):
    with subtests.test("one"):
        llm_perf.gate("ttft")
"""


def test_what_has_no_parameters_fails_alone_in_one_line(suite: Suite) -> None:
    suite.test(KINDS)
    result = suite.run("test_it.py", "--doctest-modules", "--llm-backends=sim", "--llm-results=raw.json")
    result.assert_outcomes(passed=4, failed=3, errors=6)
    unnamed = "Failed: llm_ fixtures have no values here: pytest parametrizes no unittest.TestCase, doctest or *"
    owned = "Failed: the plugin gives {} its values; choose others with @pytest.mark.llm(*"
    result.stdout.fnmatch_lines_random(
        [
            f"ERROR test_it.py::TestCaseWithAFixture::test_it - {unnamed}",
            f"ERROR test_it.py::TestCaseThatUses::test_it - {unnamed}",
            f"FAILED test_it.py::test_dynamic - {unnamed}",
            f"ERROR test_it.py::test_late - {unnamed}",
            f"FAILED test_it.py::test_it.documented - {unnamed}",
            "ERROR test_it.py::test_wide[[]sim-b1-p16-n8[]] - *ScopeMismatch: *",
            f"ERROR test_it.py::test_indirect[[]sim[]] - {owned.format('llm_backend')}",
            f"ERROR test_it.py::test_direct[[]1-b1[]] - {owned.format('llm_workload')}",
            "FAILED test_it.py::test_async[[]sim-b1-p16-n8[]] - Failed: async def functions are not natively *",
        ]
    )
    raw = json.loads((suite.path / "raw.json").read_text())
    assert [one["case"].rpartition("/")[2] for one in raw["results"]] == ["tpot", "ttft"]
    unmeasured = dict(one.partition(": ")[::2] for one in raw["unmeasured"])
    assert unmeasured["test_it.py::TestCaseWithAFixture::test_it"].startswith("llm_ fixtures have no values")
    assert len(unmeasured) == 4


def test_settings_that_only_a_running_test_asks_for_fail_it_in_one_line(suite: Suite) -> None:
    suite.test("def test_late(request):\n    request.getfixturevalue('llm_model')\ndef test_other(): pass\n")
    result = suite.run("test_it.py", "--llm-model=gpt-9")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("FAILED test_it.py::test_late - Failed: llmperf: unknown model 'gpt-9'; known: *")
    result.stdout.no_fnmatch_line("*Error*")
