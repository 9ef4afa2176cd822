"""What rewriting loses: the closed forms against direct sums and simulation, the rewriters against small cases, the committed claims."""
import numpy as np
import pytest
from llmwatch_course.ace.collapse import (BUDGET, KEEP, PAGE, RATIO, UPDATES, aiming, appending, brevity, candidates, centrality, chains, channel, edited, extractive,
                                          kept, leaky, learned, length, real_notes, retained, rewritten, smollm2_rewriter, trimmed)
from llmwatch_course.foundations.chat import Scripted

LINES = "Call sync() after each save.\nCall sync() before each load.\nEach save needs a call of sync() first.\nWhales sing at night."


@pytest.mark.parametrize("T", [1, 7, 60, 400])
@pytest.mark.parametrize("p", [0., 0.5, 0.95, 0.999, 1.])
def test_retained_is_the_mean_of_the_powers(p, T):
    assert retained(p, T) == pytest.approx(sum(p**k for k in range(T)) / T, abs=1e-12)


def test_the_printed_values():
    assert [round(retained(p, 60), 3) for p in (0.999, 0.99, 0.97, 0.95, 0.90)] == [0.971, 0.755, 0.466, 0.318, 0.166]
    assert [round(learned(48, 1, t), 3) for t in (48, 96, 192)] == [0.636, 0.867, 0.982]


@pytest.mark.parametrize("p, q, r", [(0.97, 0, 0), (0.9, 0, 0), (1., 0, 0), (0.99, 0.02, 0.02), (0.95, 0.1, 0.5)])
def test_the_channel_follows_the_formula(p, q, r):
    "Within 3 standard errors at every fifth step; a catastrophe is in the mean a smaller p."
    held = channel(p, 60, 4000, np.random.default_rng(1), q, r)
    for T in range(1, 61, 5):
        x = held[:, T - 1] / T
        assert abs(x.mean() - retained((1 - q) * p + q * r, T)) <= 3.5 * x.std() / len(x)**0.5 + 1e-12


def test_catastrophes_have_a_long_tail():
    final = channel(0.99, 60, 20000, np.random.default_rng(0), 0.02, 0.02)[:, -1] / 60
    assert abs(final.mean() - 0.47) < 0.02 and np.quantile(final, 0.05) < 0.08


@pytest.mark.parametrize("p", [1., 0.99, 0.95, 0.5])
def test_learned_solves_its_recurrence(p):
    share = 0.
    for t in range(200):
        assert learned(48, p, t) == pytest.approx(share, abs=1e-12)
        share = p * (share + (1 - share) / 48)
    assert learned(48, p, 10**6) == pytest.approx((p / 48) / (1 - p + p / 48))


@pytest.mark.parametrize("seed", range(4))
def test_notes_are_real_and_their_facts_their_own(seed):
    notes = real_notes(100, seed)
    facts = [note.fact for note in notes]
    assert len(set(facts)) == 100 and notes == real_notes(100, seed) and notes[:60] == real_notes(60, seed)
    assert all(sum(fact in note.text for note in notes) == 1 for fact in facts)
    assert all("\n" not in note.text for note in notes)


def test_too_many_notes():
    with pytest.raises(ValueError, match="not 100000"): real_notes(100_000)
    assert len(candidates()) > 150


def test_rewriters_on_a_small_text():
    assert centrality(LINES.splitlines()).argmin() == 3 and centrality([]).shape == (0,)
    assert extractive(0.75)(LINES, "New.") == "\n".join(LINES.splitlines()[:3] + ["New."])
    assert extractive(0.)(LINES, "A.\nB.") == "A.\nB." and extractive(1.)(LINES, "") == LINES == appending()(LINES, "")
    assert appending(length(LINES))(LINES, "New.").splitlines()[0] == LINES.splitlines()[1]
    assert trimmed(["a b", "c d e", "f"], [1, 0, 2], 3) == "a b\nf" and trimmed(["a b"], [0], 1) == ""


@pytest.mark.parametrize("budget", [1, 50, 333, BUDGET])
def test_no_budget_is_ever_exceeded(budget):
    notes = real_notes(60, 5)
    for editor in (appending(budget), extractive(0.95, budget), aiming(budget)):
        assert max(map(length, rewritten(editor, notes))) <= budget


def test_a_line_is_kept_whole_or_not_at_all():
    notes = real_notes(60, 2)
    for text in rewritten(extractive(RATIO, seed=2), notes): assert set(text.splitlines()) <= {note.text for note in notes}


def test_the_committed_gap():
    "ace-collapse as fixed before the run: 0.95, 2,048 tokens, 60 updates, 16 seeds."
    gaps = []
    for seed in range(16):
        notes = real_notes(UPDATES, seed)
        a, b = (kept(rewritten(editor, notes)[-1], notes).mean() for editor in (appending(BUDGET), extractive(RATIO, BUDGET, seed)))
        gaps.append(a - b)
    assert (RATIO, BUDGET, UPDATES) == (0.95, 2048, 60)
    assert np.mean(gaps) == pytest.approx(1 - retained(RATIO, UPDATES), abs=0.02) and min(gaps) > 0.3


@pytest.mark.parametrize("seed", range(4))
def test_brevity_is_the_target_over_what_was_learned(seed):
    got = brevity(seed)
    assert got["length"] <= PAGE and got["closed_form"] - 60 / got["learned"] < got["share"] <= got["closed_form"] <= 0.5
    more = brevity(seed, updates=100)
    assert more["share"] < got["share"] and brevity(seed, target=10**6)["share"] == 1


def test_a_model_as_rewriter():
    asked = Scripted(lambda messages: "Here they are:\n1. One.\n\n* Two.\n- Two.\n2) 3 of three.")
    assert smollm2_rewriter(asked)("Old.", "New.") == "Here they are:\nOne.\nTwo.\n3 of three."
    assert asked.requests[0]["messages"][0]["content"] == f"{KEEP}\n\n- Old.\n- New."
    echo = Scripted(lambda messages: messages[0]["content"].split("\n\n")[1])
    story = chains(echo, 3, 2, [0, 1])
    assert [[len(notes) for _, notes in row] for row in story] == [[2, 2], [4, 4], [6, 6]]
    assert all(kept(text, notes).all() for row in story for text, notes in row)
    assert edited(["A b."], Scripted([""])) == [""]


def test_the_leaky_channel_leaks_all_lines_alike():
    left = [leaky(0.7, seed)("a\nb\nc", "d") for seed in range(2000)]
    for line in "abcd": assert abs(np.mean([line in text for text in left]) - 0.7) < 0.05
    assert leaky(0.)("a", "b") == ""
