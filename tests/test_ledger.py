"""The ledger's page is what a run of it gives today, it has a card for every claim, and what can be derived comes out as recorded."""
import os
import nbformat, pytest, torch
from conftest import ROOT, name, notebooks
from nbclient import NotebookClient
from llmwatch_course.foundations.results import ledger, load_claims, read

PAGE = ROOT/"nbs/ledger.ipynb"
CPU = torch.device("cpu")


def outputs(nb, kind):
    "What each code cell shows, the clock at the end left out."
    cells = [c for c in nb.cells if c.cell_type == "code"][:-1]
    return ["".join(o["data"].get(kind, "") for o in c.outputs if "data" in o) for c in cells]


@pytest.fixture(scope="module")
def page(): return nbformat.read(PAGE, 4)


def test_the_page_is_what_a_run_gives_today(page):
    "After a new result, a new claim or a new word in claims.toml the page is to be run again."
    again = nbformat.read(PAGE, 4)
    NotebookClient(again, timeout=60, resources={"metadata": {"path": PAGE.parent}}).execute(env={**os.environ, "LLMWATCH_SCALE": "small"})
    for kind in ("text/plain", "text/html"): assert outputs(page, kind) == outputs(again, kind), "run nbs/ledger.ipynb again"


def test_every_claim_has_its_card(page):
    "All that is known about a claim stands on it, in the notebook and in a terminal."
    plain, html = ("\n\n".join(outputs(page, kind)) for kind in ("text/plain", "text/html"))
    cards = {c.split(":")[0]: c for c in plain.split("\n\n") if "\n  Paper: " in c}
    assert list(cards) == list(load_claims()) and html.count("</section>") == len(cards)
    for r in ledger():
        shown = [f"{r['verdict']} ({r['scale']})", r["newsletter"], r["paper"], r["metric"], r["differs"], r["command"]]
        if r["seeds"]: shown += [r["measured"], r["needed"], f"seeds {', '.join(map(str, r['seeds']))}, {r['device']}, commit {r['commit']}"]
        missing = [o for o in shown if o.strip("–") not in cards[r["claim"]]]
        assert not missing and r["differs"], f"{r['claim']} does not show {missing}"


def shown(nb):
    "The rows of every table of results that a notebook shows, as dicts."
    for o in (o for c in nb.cells if c.cell_type == "code" for o in c.outputs):
        lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in o.get("data", {}).get("text/markdown", "").splitlines()]
        if lines and {"claim", "scale", "measured", "verdict"} <= set(lines[0]): yield from (dict(zip(lines[0], line, strict=True)) for line in lines[2:])


def test_lessons_show_the_results_of_today():
    "A table in a lesson or in the newsletter's walk is made when the page is run; the record may have changed since."
    today, known, seen = {(r["claim"], r["scale"]): r for r in ledger()}, set(load_claims()), 0
    for path in notebooks("nbs"):
        for row in shown(nbformat.read(path, 4)):
            if row["claim"] not in known: continue                         # a claim made up to explain the format
            r, seen = today[row["claim"], row["scale"]], seen + 1
            assert [row[k] for k in ("measured", "needed", "verdict")] == [r[k] for k in ("measured", "needed", "verdict")], f"{name(path)} shows an old {row['claim']}: run it again"
    assert seen > len(known)


def derived():
    "All claims that are arithmetic on tables or on the definition of a model, computed now."
    from llmwatch_course.ace.measure import derived as ace_tables
    from llmwatch_course.agents.measure import derived as agent_tables
    from llmwatch_course.ahn.measure import measure_cost
    from llmwatch_course.cwm.measure import measure_table as game_tables
    from llmwatch_course.memory_forcing.measure import measure_table as video_tables
    from llmwatch_course.trm.measure import measure_size
    from llmwatch_course.vgb.measure import Config, measure_errors
    return [*measure_cost(), *agent_tables(0), *measure_size(), *ace_tables(), game_tables(), video_tables(), *measure_errors(Config.small())]


def test_derived_claims_come_out_as_recorded():
    found = {r.claim: r.value for r in derived()}
    assert set(found) == {c.id for c in load_claims().values() if c.kind == "derived"} - {"ace-brevity"}  # that one rewrites real text: its own tests do it
    for claim, value in found.items(): assert value == pytest.approx(read(claim)["values"]["0"], rel=1e-9, abs=1e-15), claim
