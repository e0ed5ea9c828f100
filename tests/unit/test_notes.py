"""What a reader has to know beside the figures: each note once, with its cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import document, row

from pytest_llmperf.report import notes
from pytest_llmperf.report.write import FORMS

WHO = "others used 2.0 cores"


def test_a_run_without_anything_odd_has_no_notes() -> None:
    assert notes.of(document(row("ref"), row("sim", speedup=1.5, changed="", roofless=""))) == []


def test_a_speedup_over_a_reference_that_was_disturbed_throughout_is_marked_on_its_line() -> None:
    made = document(
        row("ref", speedup=1.0),
        row("sim", speedup=32.6, reference_disturbed=WHO),
        row("sim", "ttft", speedup=2.0, reference_disturbed=WHO),
        row("other", speedup=None, reference_disturbed=WHO),
    )
    assert {(one.label, one.shown_speedup) for one in made.rows} == {
        ("tpot b1-p16-n8 ref", "1.00x"),
        ("tpot b1-p16-n8 sim", "32.60x?"),
        ("ttft b1-p16-n8 sim", "2.00x?"),
        ("tpot b1-p16-n8 other", "-"),
    }
    assert notes.of(made) == [
        "?: ref was disturbed throughout, so a speedup over it tells little: others used 2.0 cores "
        "(ttft b1-p16-n8 sim and 1 more)"
    ]
    for form in (".md", ".html"):
        shown = FORMS[form](made)
        assert "32.60x?" in shown
        assert "was disturbed throughout" in shown


@given(st.lists(st.sampled_from(["", "torch 1 -> 2", "stand-in 1 -> 2"]), min_size=1, max_size=9))
def test_each_note_is_said_once(changed: list[str]) -> None:
    made = document(*(row(f"sim{number}", changed=one) for number, one in enumerate(changed)))
    found = notes.of(made)
    assert len(found) == len({*changed} - {""})
    for one in {*changed} - {""}:
        (line,) = (line for line in found if one in line)
        count = changed.count(one) - 1
        assert line.endswith(f" and {count} more)" if count else f"sim{changed.index(one)})")


@pytest.mark.parametrize("form", [".md", ".html"])
def test_reports_say_what_an_engine_s_figures_depend_on(form: str) -> None:
    engine = {"threads": 2, "compute_dtype": "int8", "versions": {"mine": "4.8"}, "environment": {"OURS": "1"}}
    shown = FORMS[form](document(row("sim", engine=engine), row("old")))
    assert all(said in shown for said in ("Engines", "int8", "mine 4.8", "OURS=1"))
