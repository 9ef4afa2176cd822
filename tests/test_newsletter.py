"""The walk through the newsletter: every statement leads somewhere, every claim is met, and the page shows the verdicts of today."""
import re, tomllib
import nbformat, pytest
from conftest import ROOT
from llmwatch_course.foundations.results import ledger, load_claims

# The fixed list of the course's claims. A claim that is dropped or renamed would leave its statement without a number.
CLAIMS = """kv-exact kv-speed kv-forget kv-sinks kv-window
ahn-flops ahn-cache ahn-flat ahn-swa ahn-full ahn-recall ahn-table
flow-broadcast flow-gain flow-errors flow-sft flow-turns flow-credit flow-norm flow-size flow-modular flow-table
trm-size trm-share trm-vs-plain trm-vs-size trm-vs-hrm trm-maze trm-llm trm-sudoku trm-arc
ace-brevity ace-collapse ace-gain ace-nolabel ace-online ace-cost ace-table ace-appworld
cwm-legal cwm-depth cwm-tactics cwm-general cwm-hidden cwm-value cwm-verified cwm-table
mf-revisit mf-explore mf-harm mf-quality mf-chain mf-flat mf-retrieval mf-table
vgb-amplify vgb-robust vgb-law vgb-frontier vgb-language vgb-reason""".split()
LESSONS = {"kv_cache": "01_kv_cache", "ahn": "02_ahn", "agents": "03_agents", "trm": "04_trm", "ace": "05_ace", "cwm": "06_cwm",
           "memory_forcing": "07_memory_forcing", "vgb": "08_vgb"}
SAID = tomllib.loads((ROOT/"data/newsletter.toml").read_text(encoding="utf-8"))
KNOWN = load_claims(ROOT/"data/claims.toml")


@pytest.fixture(scope="module")
def page(): return nbformat.read(ROOT/"nbs/newsletter.ipynb", 4)


def test_every_claim_of_the_plan_exists(): assert set(KNOWN) == set(CLAIMS)


def test_every_claim_is_met_in_the_walk(): assert {c for s in SAID["statement"] for c in s["claims"]} == set(CLAIMS)


@pytest.mark.parametrize("s", SAID["statement"], ids=lambda s: s["english"][:40])
def test_statement_leads_somewhere(s):
    assert set(s) - {"note"} == {"part", "statement", "english", "paper", "lesson", "claims"}
    assert 1 <= len(s["statement"].split()) <= 8 and re.search("[가-힣]", s["statement"]), "a quote is one to eight Korean words"
    assert re.match(r"[A-Z0-9+]", s["english"]) and s["english"].endswith((".", "?")) and not re.search("[가-힣]", s["english"])
    assert s["claims"] or s["lesson"]
    assert s["lesson"] == LESSONS[s["paper"]], "a statement's lesson is the chapter of its paper"
    topics = {KNOWN[c].topic for c in s["claims"]}
    assert topics <= {s["paper"], "kv_cache"}, "its claims are measured there, or in the chapter on the cache"


def test_every_paper_is_a_true_one():
    assert SAID["paper"].keys() == LESSONS.keys()
    for topic, p in SAID["paper"].items():
        assert p.keys() == {"title", "authors", "venue", "arxiv", "code", "printed", "printed_code"} and p["title"] and p["authors"] and p["venue"]
        assert re.fullmatch(r"\d{4}\.\d{5}", p["arxiv"]) and p["arxiv"] != p["printed"] and p["code"] != (p["printed_code"] or None)
        cited = [c.paper for c in KNOWN.values() if c.topic == topic and "arXiv" in c.paper]
        assert any(p["arxiv"] in c for c in cited), f"{topic}: the ledger cites another paper"


def test_no_statement_is_told_twice():
    quotes = [s["statement"] for s in SAID["statement"]]
    assert len(quotes) == len(set(quotes))


def test_the_walk_shows_every_part(page):
    code = "\n".join(c.source for c in page.cells if c.cell_type == "code")
    assert all(f'walk("{part}")' in code for part in {s["part"] for s in SAID["statement"]})
    assert all(f'cite("{t}")' in code and f'measured("{t}")' in code for t in LESSONS)


def test_no_verdict_is_typed(page):
    "Verdicts come from the ledger, in outputs alone."
    prose = "\n".join(c.source for c in page.cells if c.cell_type == "markdown")
    assert not re.search(r"\b(reproduced|mechanism shown)\b", prose)


def test_the_page_shows_the_ledger_of_today(page):
    "After new results the page is to be run again."
    shown = "\n".join(o.data.get("text/plain", "") for c in page.cells if c.cell_type == "code" for o in c.outputs if "data" in o)
    for claim in CLAIMS:
        words = list(dict.fromkeys(r["verdict"] for r in ledger({claim: KNOWN[claim]})))
        assert f"{claim}: {words[0]}" in shown, f"{claim} is {words[0]} in the ledger: run nbs/newsletter.ipynb again"
