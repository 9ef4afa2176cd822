"""The paper's tables re-read: averages and gains from the cells."""
import math
from statistics import mean
import pytest
from llmwatch_course.agents.tables import DOMAINS, FROZEN, LARGER, QUESTIONS, TRAINED, accuracy, average, best_baseline, flow_table
from llmwatch_course.foundations.results import printed


@pytest.mark.parametrize("name, keys", [("main", {"table", "method", "group", "domain", "benchmark", "printed"}), ("planner", {"table", "planner", "benchmark", "printed"}),
                                        ("use", {"table", "benchmark", "quantity", "when", "printed", "unit"})])
def test_tables_are_whole(name, keys):
    rows = printed(f"agentflow_{name}")
    assert rows and all(set(r) == keys and all(r.values()) for r in rows)
    assert all(float(r["printed"]) >= 0 for r in rows)
    places = [tuple(v for k, v in r.items() if k != "printed") for r in rows]
    assert len(set(places)) == len(places)


def test_every_cell_belongs_to_a_benchmark_of_its_domain():
    for r in printed("agentflow_main"): assert r["benchmark"] == "average" or r["benchmark"] in DOMAINS[r["domain"]]
    table = accuracy()
    assert len(table) == 10 and all(set(table[m]) == {b for names in DOMAINS.values() for b in names} for m in (FROZEN, TRAINED, LARGER))


def test_printed_averages_follow():
    table = accuracy()
    shown = [r for r in printed("agentflow_main") if r["benchmark"] == "average"]
    assert len(shown) == 22 and all(abs(float(r["printed"]) - average(table[r["method"]], r["domain"])) < 0.0501 for r in shown)
    assert average(table["Search-R1"], "math") is None


def test_flow_table_is_the_abstract():
    got = flow_table()
    assert {d: round(x, 1) for d, x in got["over_best"].items()} == {"search": 14.9, "agentic": 14.0, "math": 14.5, "science": 4.1}
    assert got["best"] == {"search": "AutoGen", "agentic": "Search-R1", "math": "ToRL", "science": "TIR"}
    for d, x in {"search": 10.1, "agentic": 15.9, "math": 19.8, "science": 7.0}.items(): assert abs(got["training"][d] - x) < 0.06
    for d in DOMAINS: assert math.isclose(got["over_best"][d], got["system"][d] + got["training"][d], abs_tol=1e-9)
    assert math.isclose(got["average_over_best"], mean([14.9, 14.0, 14.5, 4.1]), abs_tol=0.05) and abs(got["average_training"] - 13.2) < 0.05 and got["newsletter"] == 14
    assert got["average_over_best"] < 12.5 < got["newsletter"] and all(x > 0 for x in got["over_larger"].values())
    assert best_baseline("agentic") == ("Search-R1", 19.1)


def test_planner_table():
    rows, table = printed("agentflow_planner"), accuracy()
    six = [r["benchmark"] for r in rows if r["benchmark"] != "average of six"]
    total = {r["planner"]: float(r["printed"]) for r in rows if r["benchmark"] == "average of six"}
    assert len(six) == 6 and abs(mean(table[FROZEN][b] for b in six) - total["Qwen2.5-7B, frozen"]) < 0.06 and abs(mean(table[TRAINED][b] for b in six) - total["Qwen2.5-7B, Flow-GRPO"]) < 0.06
    assert total["Qwen2.5-7B, SFT on GPT-4o's traces"] + 19 == total["Qwen2.5-7B, frozen"]


def test_shares_of_calls_do_not_exceed_the_whole():
    for b in ("2Wiki", "MedQA"):
        for when in ("step 0", "step 32"):
            total = sum(float(r["printed"]) for r in printed("agentflow_use") if (r["table"], r["benchmark"], r["when"]) == ("tool use", b, when))
            assert 85 < total <= 100


def test_questions_are_of_known_benchmarks(): assert set(QUESTIONS) <= {b for names in DOMAINS.values() for b in names}
