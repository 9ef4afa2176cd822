"""The paper's tables re-read: averages and headlines from the cells, the leaderboard per split, errors and what is no whole number of tasks."""
from statistics import mean
import pytest
from llmwatch_course.ace.tables import (ACE_ONLINE, ACE_ONLINE_WARM, DC_ONLINE, KEYS, LABELS, SPLITS, TASKS, ace_appworld, ace_table, agents, finances, like_for_like,
                                        standard_error, systems)
from llmwatch_course.foundations.results import printed
from llmwatch_course.foundations.statistics import reachable

COLUMNS = {"appworld": {"table", *KEYS["appworld"], "column", "printed"}, "finance": {*KEYS["finance"], "column", "printed"}, "models": {"model", "benchmark", "method", "labels", "when", "printed"},
           "sweeps": {"sweep", "value", "printed"}, "costs": {"where", "who", "quantity", "printed"}}


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_are_whole(name):
    rows = printed(f"ace_{name}")
    assert rows and all(set(row) == COLUMNS[name] and all(row.values()) and float(row["printed"]) >= 0 for row in rows)
    places = [tuple(v for k, v in row.items() if k != "printed") for row in rows]
    assert len(set(places)) == len(places)


def test_printed_averages_follow():
    "All but the leaderboard's, which is short of its cells by less than a tenth."
    for name, columns in (("appworld", SPLITS), ("finance", ("FiNER", "Formula"))):
        for key, row in systems(name).items():
            assert set(row) <= {*columns, "average"}
            if "average" in row: assert abs(row["average"] - mean(row[c] for c in columns)) <= (0.0751 if "CUGA" in key[0] else 0.0501), key


def test_the_headlines():
    assert [round(x, 1) for x in agents().values()] == [12.3, 11.9, 7.6] and round(mean(agents().values()), 1) == 10.6
    assert [round(x, 2) for x in finances().values()] == [10.9, 6.15]
    claim = ace_table()
    assert claim["agents_mean"] == pytest.approx(10.6) and claim["finance_mean"] == pytest.approx(8.525) and claim["newsletter"] == (10.6, 8.6)


def test_like_for_like():
    fair = like_for_like()
    assert [round(x, 1) for x in fair.values()] == [13.0, 14.8, 4.2, 9.4, 8.0, 4.8, 7.5]
    app = systems("appworld")
    assert fair["agents, online, no labels, no warm-up: - DC"] == pytest.approx(56.1 - 51.9) and app[DC_ONLINE]["normal SGC"] > app[ACE_ONLINE_WARM]["normal SGC"]


def test_the_leaderboard():
    board = ace_appworld()
    assert {s: round(board["with warm-up"][s], 1) for s in SPLITS} == {"normal TGC": -3.6, "normal SGC": -8.9, "challenge TGC": 8.4, "challenge SGC": 0.7}
    assert {s: round(board["without warm-up"][s], 1) for s in SPLITS} == {"normal TGC": -5.3, "normal SGC": -10.7, "challenge TGC": 3.8, "challenge SGC": -5.0}
    for key, row in board.items(): assert row["average"] == pytest.approx(mean(row[s] for s in SPLITS)), key
    assert board["with warm-up"]["average"] == pytest.approx(-0.85) and board["without warm-up"]["average"] == pytest.approx(-4.3)
    assert systems("appworld")[ACE_ONLINE]["average"] == 56.1


def test_relative_and_absolute():
    app = systems("appworld")
    full, rewriting = app["ACE", *LABELS], app["ACE, full rewriting", *LABELS]
    assert [round(100 * (rewriting[s] / full[s] - 1), 1) for s in SPLITS[:2]] == [-11.7, -27.8]


def test_costs():
    cost = {(r["where"], r["who"], r["quantity"]): float(r["printed"]) for r in printed("ace_costs")}
    read = "million tokens read"
    assert sum(cost["AppWorld offline, adaptation (appendix)", f"ACE {role}", read] for role in ("Generator", "Reflector", "Curator")) == pytest.approx(39.3)
    assert cost["AppWorld, evaluation (appendix)", "ACE", read] / cost["AppWorld, evaluation (appendix)", "GEPA", read] == pytest.approx(2.17, abs=0.005)


def test_errors_and_reachable():
    assert standard_error(50, 100) == 5 and standard_error(100, 10) == 0
    cells = [(row[s] / 100, TASKS[s], 3) for row in systems("appworld").values() for s in SPLITS if s in row]
    assert sum(reachable(*cell) for cell in cells) >= len(cells) - 3
