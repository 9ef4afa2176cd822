"A budget is a law, whatever measures it; what goes is the worst, and nobody's vote is lost or counted twice."
import math, random, zlib
from dataclasses import replace
import pytest
from hypothesis import given, settings, strategies as st
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.playbook import Bullet, Playbook, tokens
from llmwatch_course.ace.refine import Policy, absorbed, at_best, at_worst, fit, grow_and_refine, harmful, merges, smallest

TAME = {"words": tokens, "characters": len, "bytes": lambda text: len(text.encode()), "square": lambda text: len(text)**2//400, "lines": lambda text: text.count("\n") + 1, "calls": lambda text: 7*text.count("`") + len(text)//3,
        "nothing": lambda text: 0}
WILD = {"longer is cheaper": lambda text: 3000 - len(text), "dice": lambda text: zlib.crc32(text.encode()) % 1000, "everything": lambda text: 10**9, "negative": lambda text: -len(text), "parity": lambda text: 5 if len(text) % 2 else 500}
WORDS = ["Call `{}` now.", "call `{}`  now", "Never call `{}`.", "Do not call `{}`.", "`{}` takes 2 rows.", "`{}` takes two rows", "`{}` takes 3 rows", "long " * 40 + "`{}`"]


def dice_book(seed, pins=0.1):
    rng = random.Random(seed)
    ops = [Op("ADD", section=rng.choice(["apis", "checks"]), content=rng.choice(WORDS).format(rng.choice("abc"))) for _ in range(rng.randint(0, 16))]
    book = [replace(b, helpful=rng.randint(0, 4), harmful=rng.choice([0, 0, 1, 5]), exposures=rng.randint(0, 6), pinned=rng.random() < pins) for b in apply(Playbook(), Delta(ops))[0].active()]
    return Playbook([replace(b, status="quarantined", pinned=False) if rng.random() < 0.1 else b for b in book])


def test_bounds_of_the_fact_sheet():
    assert [round(at_worst(*votes), 3) for votes in ((1, 0), (5, 0), (8, 0), (3, 1), (5, 5), (0, 1), (0, 9), (0, 0))] == [.271, .650, .748, .357, .270, 0, 0, 0]
    assert at_best(0, 0) == 1 and all(at_worst(h, m) <= h/(h + m) <= at_best(h, m) for h in range(9) for m in range(9) if h + m)


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_bound_solves_its_equation(helpful, harmful):
    n = helpful + harmful
    if not n or not helpful: return
    p = at_worst(helpful, harmful)
    assert abs(helpful/n - p - 1.64*math.sqrt(p*(1 - p)/n)) < 1e-9
    assert at_worst(helpful + 1, harmful) > p > at_worst(helpful, harmful + 1)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_smallest_ends_where_it_says(answers):
    answers = [*answers, True]
    k = smallest(answers.__getitem__, len(answers) - 1)
    assert answers[k] and (k == 0 or not answers[k - 1])


@given(st.integers(0, 10**6), st.sampled_from([0, 5, 30, 100, 400, 1500]), st.sampled_from([*TAME, *WILD]))
@settings(max_examples=250, deadline=None)
def test_the_budget_is_a_law(seed, budget, name):
    before, policy = dice_book(seed), Policy(budget, (TAME | WILD)[name])
    pinned = {b.id for b in before.active() if b.pinned}
    try: after, delta = grow_and_refine(before, policy)
    except ValueError as error:
        assert str(budget) in str(error) and (name in WILD or not policy.fits(before.render(pinned)))
        return
    assert policy.fits(after.render()) and all(after.heir(id) for id in pinned)
    again, nothing = grow_and_refine(after, policy)
    assert again is after and nothing.ops == (), "refining what is refined"
    assert apply(before, delta)[0] == after, "the delta explains it all"


@given(st.integers(0, 10**6), st.sampled_from([20, 60, 150, 400]), st.sampled_from(sorted(TAME)))
@settings(max_examples=120, deadline=None)
def test_evictions_are_minimal_and_the_worst(seed, budget, name):
    before, policy = dice_book(seed, pins=0), Policy(budget, TAME[name], tau=None, harmful_min=99)
    delta = fit(before, policy)
    gone = [op.fields["id"] for op in delta.ops]
    stay = {b.id for b in before.active()} - set(gone)
    assert all(op.kind == "RETIRE" and op.fields["reason"] == "budget" for op in delta.ops) and all(before.get(id).status == "active" for id in gone)
    assert not any(policy.fits(before.render(stay | {id})) for id in gone)
    worst = [b.id for b in policy.worst_first(before.active())]
    for id in stay:  # who stays although somebody better went is too short to make room for the better one
        better = [other for other in gone if worst.index(other) > worst.index(id)]
        assert all(not policy.fits(before.render({i for i in stay if worst.index(i) > worst.index(id)} | {other})) or policy.count_tokens(before.get(id).content) < policy.count_tokens(before.get(other).content) for other in better)


@given(st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_merging_keeps_credit_and_meaning(seed):
    before = dice_book(seed)
    policy = Policy(tau=0.3, harmful_min=99)
    after, delta = grow_and_refine(before, policy)
    for key in ("helpful", "harmful", "exposures"): assert sum(getattr(b, key) for b in before.bullets if b.live) == sum(getattr(b, key) for b in after.bullets if b.live)
    assert {("not" in b.content or "ever" in b.content, "2" in b.content or "two" in b.content, "3" in b.content, b.content.split("`")[1], b.section) for b in before.active()} == \
           {("not" in b.content or "ever" in b.content, "2" in b.content or "two" in b.content, "3" in b.content, b.content.split("`")[1], b.section) for b in after.active()}
    shuffled = Playbook(random.Random(seed).sample(list(before.bullets), len(before.bullets)))
    assert grow_and_refine(shuffled, policy)[0] == after, "in any order"


def test_in_grace_unless_nothing_else():
    tried, new = Bullet("a-1", "apis", "one two three", helpful=9, exposures=3), Bullet("a-2", "apis", "four five six")
    one = tokens(Playbook([tried]).render())
    assert [op.fields["id"] for op in fit(Playbook([tried, new]), Policy(one)).ops] == ["a-1"]
    assert [op.fields["id"] for op in fit(Playbook([tried, new]), Policy(one, grace=0)).ops] == ["a-2"]
    assert [op.fields["id"] for op in fit(Playbook([new, replace(new, id="a-3")]), Policy(one)).ops] == ["a-2"], "of equals the oldest"


def test_too_long_for_the_room_goes_alone():
    small = [Bullet(f"a-{i}", "apis", f"rule {i}", exposures=5, helpful=1) for i in range(5)]
    budget = tokens(Playbook(small).render())
    assert [op.fields["id"] for op in fit(Playbook([*small, Bullet("a-9", "apis", "word "*500)]), Policy(budget)).ops] == ["a-9"]


def test_pins_beyond_the_budget_are_an_error():
    book = Playbook([Bullet("a-1", "apis", "word "*50, pinned=True), Bullet("a-2", "apis", "short")])
    with pytest.raises(ValueError, match=r"budget of 20 tokens .* pinned \(1 bullets\)"): fit(book, Policy(20))
    assert fit(book, Policy()).ops == ()


def test_harm_needs_evidence():
    def book(**votes): return Playbook([Bullet("a-1", "apis", "x", **votes)])
    assert [len(harmful(book(helpful=h, harmful=m), Policy())) for h, m in ((0, 2), (0, 3), (1, 3), (1, 9), (9, 9))] == [0, 1, 0, 1, 0]
    assert not harmful(book(harmful=9, pinned=True), Policy())


def test_evicted_twice():
    add = lambda text, n: Delta([Op("ADD", section="apis", content=text, revive=True)], source=f"episode {n}")
    policy, book = Policy(1, lambda text: text.count("- ["), grace=0), Playbook()
    for n in range(6):
        book = grow_and_refine(apply(book, add(f"rule `{'ab'[n % 2]}`", n))[0], policy)[0]
        assert len(book) == 1
    assert sum(b.status == "retired" for b in book.bullets) == 1


def test_lazy_waits_for_the_budget():
    twins = apply(Playbook(), Delta([Op("ADD", section="apis", content=c) for c in ("call `a` now", "Call `a` now.")]))[0]
    assert grow_and_refine(twins, Policy(500, lazy=True))[1].ops == () and len(grow_and_refine(twins, Policy(500))[0]) == 1
    assert len(grow_and_refine(twins, Policy(15, lazy=True))[0]) == 1 and grow_and_refine(twins, Policy(tau=None))[1].ops == ()


def test_the_pinned_and_the_best_stay():
    a, b, c = (Bullet(f"apis-{i}", "apis", text, helpful=h, pinned=p) for i, (text, h, p) in enumerate([("call `a` now", 0, True), ("Call `a` now.", 9, False), ("call `a`  NOW", 1, False)]))
    assert [op.fields["keep"] for op in merges(Playbook([a, b]), Policy())] == ["apis-0"]
    assert [op.fields["keep"] for op in merges(Playbook([replace(a, pinned=False), b]), Policy())] == ["apis-1"] and not merges(Playbook([b, c]), Policy())
    after, _ = grow_and_refine(Playbook([a, b]), Policy())
    heir = after.get("apis-0")
    assert heir.pinned and heir.helpful == 9 and after.heir("apis-1") == heir and absorbed(after) == {"apis-0": ["Call `a` now."]}


def test_bulk_in_time():
    book = Playbook([Bullet(f"apis-{i:05d}", "apis", f"rule {i} about `tool_{i}`") for i in range(3000)])
    after, delta = grow_and_refine(book, Policy(500))
    assert tokens(after.render()) <= 500 and len(delta.ops) == 3000 - len(after)
