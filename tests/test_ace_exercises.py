"""What the library does is what the exercises of chapter 5 ask for."""
import math
from itertools import combinations
import numpy as np
import pytest
from llmwatch_course.ace import checks
from llmwatch_course.ace.collapse import retained
from llmwatch_course.ace.credit import Log, effects
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.files import from_markdown, to_markdown
from llmwatch_course.ace.mistakes import RIGHT
from llmwatch_course.ace.playbook import Bullet, Playbook, bullet_id, cleaned
from llmwatch_course.ace.refine import Policy, fit


def as_op(op): return Op(op["op"], **{key: value for key, value in op.items() if key != "op"})


def test_apply():
    known = {}  # id in the library -> id and content in the exercise

    def stored(key, o):
        content = cleaned(o["content"])
        known[bullet_id(o["section"], content)] = key, o["content"].strip()
        return Bullet(bullet_id(o["section"], content), o["section"], content, o["helpful"], o["harmful"], status="retired" if o["retired"] else "active")

    def answer(book, delta, strict=False):
        old = Playbook([stored(key, o) for key, o in book["bullets"].items()], book["applied"], sections=("calls", "formats"))
        for op in delta["ops"]:
            if op.keys() >= {"section", "content"}: stored(checks._ID(op["section"], op["content"].strip()), {**op, "helpful": 0, "harmful": 0, "retired": False})
        ops = [as_op(op) for op in delta["ops"]]
        new, report = apply(old, Delta(ops, delta_id=delta["id"]), strict)
        rejected = {id(op): why for op, why in report.rejected}
        bullets = {known[b.id][0]: {"section": b.section, "content": known[b.id][1], "helpful": b.helpful, "harmful": b.harmful, "retired": not b.live} for b in new.bullets}
        return {"bullets": bullets, "applied": set(new.applied)}, [(op, rejected[id(o)]) for op, o in zip(delta["ops"], ops, strict=True) if id(o) in rejected]
    checks.check_apply(answer)


def test_merge():
    def answer(bullets, op):
        old = Playbook([Bullet(key, "calls", f"words of {key}", o["helpful"], o["harmful"], status="retired" if o["into"] else "active", into=o["into"]) for key, o in bullets.items()])
        heirs = [heir.id for key in op.get("ids", ()) if (heir := old.heir(key))]
        op = as_op(op) if op["op"] == "TAG" else Op("MERGE", ids=op["ids"], keep=min(heirs, default=""))
        return {b.id: {"helpful": b.helpful, "harmful": b.harmful, "into": b.into} for b in apply(old, Delta([op]))[0].bullets}
    checks.check_merge(answer)


def test_the_forecast_is_the_channels_closed_form():
    def answer(log):
        o = RIGHT["check_collapse"][0](log)
        return {**o, "retained": retained((1 - o["q"])*o["p"] + o["q"]*o["r"], 60)}
    checks.check_collapse(answer)


@pytest.mark.parametrize("name", [*checks._BAGS, *checks._CROWDED])
def test_the_budget_of_the_library_holds_too(name):
    "It goes by counters and not by `worth`; the cap and the pins are the same."
    bag, budget = {**checks._BAGS, **checks._CROWDED}[name]
    book = Playbook([Bullet(o["id"], o["section"], o["text"] or "x", helpful=round(9*o["worth"]), harmful=9 - round(9*o["worth"]), exposures=9, pinned=o["pinned"]) for o in bag])
    policy = Policy(budget=budget + 8, count_tokens=lambda text: len(text.split()))
    pins = [o.id for o in book.active() if o.pinned]
    if pins and policy.count_tokens(book.render(pins)) > policy.budget:
        with pytest.raises(ValueError): fit(book, policy)
        return
    small, report = apply(book, fit(book, policy))
    assert not report.rejected and policy.count_tokens(small.render()) <= policy.budget and {*pins} <= {o.id for o in small.active()}


@pytest.mark.parametrize("content", checks._ATTACKS, ids=lambda content: repr(content[:30]))
def test_files_hold_what_the_readers_corpus_writes(content):
    ops = [Op("ADD", section="apis", content="before"), Op("ADD", section="apis", content=content), Op("ADD", section="formulas", content="after")]
    book, report = apply(Playbook(), Delta(ops))
    assert len(book) == len(report.accepted) >= 2 and {o.section for o in book.active()} == {"apis", "formulas"}
    assert from_markdown(to_markdown(book)) == book


@pytest.mark.parametrize("name", checks._HISTORIES)
def test_effects(name):
    "The library's standard error is more careful; the effect is the same."
    log, ids = checks._HISTORIES[name]
    shown = np.array([[key in o for key in ids] for o, *_ in log], dtype=bool).reshape(len(log), len(ids))
    found = effects(Log(ids, np.ones_like(shown), shown, np.array([passed for _, passed, _ in log], dtype=float)))
    np.testing.assert_allclose([found[key].effect for key in ids], [checks._exact(log, key)[0] for key in ids])


def test_the_simulated_agents_effects():
    "Oracle: the expectation over all sets of shown bullets, written out."
    class Certain:
        def __init__(self, coin): self.coin = coin
        def random(self): return self.coin
    names = list(checks._EFFECTS)
    every = [set(some) for n in range(len(names) + 1) for some in combinations(names, n)]
    def chance(shown):  # by bisection: the largest coin that passes
        low, high = 0., 1.
        for _ in range(40):
            mid = (low + high) / 2
            low, high = (mid, high) if checks.agent(shown, .5, Certain(mid))[0] else (low, mid)
        return low
    p = {frozenset(shown): chance(shown) for shown in every}
    assert all(.05 < o < .95 for o in p.values())
    for rate in (.2, .5):
        for key, effect in checks.true_effects(rate).items():
            def mean(side, key=key, rate=rate):
                weights = {o: (1 - rate)**len(o)*rate**(len(names) - len(o)) for o in p if (key in o) == side}
                return sum(p[o]*w for o, w in weights.items()) / sum(weights.values())
            assert math.isclose(mean(True) - mean(False), effect, abs_tol=1e-6)
