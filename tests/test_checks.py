"""Checks have teeth: known wrong answers are refused with their own sentence, right ones of every style pass."""
from importlib import import_module
import pytest
from conftest import ROOT
from llmwatch_course.foundations.checking import verify_checks

TOPICS = sorted(p.parent.name for p in (ROOT/"llmwatch_course").glob("*/checks.py"))


@pytest.mark.parametrize("topic", TOPICS)
def test_checks_recognise_their_mistakes(topic): assert verify_checks(import_module(f"llmwatch_course.{topic}.checks")) >= 5
