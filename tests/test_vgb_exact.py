"""Trees of texts and the exact laws on them, against matrices, closed forms and published digits."""
import math
from fractions import Fraction
import pytest, torch
from llmwatch_course.vgb.exact import (absorb, action_level, conductance, degree, expected_steps, first_leaf, kl, later_leaf, leaf_mass, max_ratio,
                                       mixing_time, momentum_first_leaf, momentum_stationary, neighbour_weights, solve_stationary, spectral_gap,
                                       stationary, step, total_variation, tour_law, transition_matrix, turn_weights)
from llmwatch_course.vgb.tree import (KINDS, Tree, abc, complete, cut, delay, dyck, eos_example, guided, one_step_late, padded, parity, random_tree,
                                      scaled, texts)
from torch.testing import assert_close


def near(x, digits):
    "x agrees with a printed number: to 1e-4, or to half of its last digit where it has fewer."
    decimals = len(digits.partition(".")[2])
    assert abs(x - float(digits)) <= max(1e-4, 0.51 * 10**-decimals), (x, digits)


def many(n=48, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [random_tree(g, KINDS[i % 4]) for i in range(n)]


def by_matrix(tree, start=0):
    "Law of the first leaf from a node and expected steps, from (I - Q)^-1."
    P, live = transition_matrix(tree, lazy=0), (tree.open & ~tree.leaf).nonzero()[:, 0]
    Q = P[live][:, live]
    visits = torch.linalg.solve(torch.eye(len(live)) - Q.T, (live == start).double())
    law = torch.zeros(len(P), dtype=P.dtype)
    law[tree.leaves] = visits @ P[live][:, tree.leaves]
    return law, visits.sum().item()


# Published digits (fact sheet of the chapter, section 5.2)

ABC = """2 0.1667 .1000 .0556 0.0589 1.50 0.0714 .0455 .0263 0.0103 5.14 0.2000
4 0.2407 .1480 .0830 0.1767 3.37 0.0804 .0504 .0289 0.0186 19.97 0.0909
6 0.2901 .1826 .1033 0.2945 7.59 0.0859 .0537 .0307 0.0221 43.60 0.0588
8 0.3441 .2102 .1200 0.4122 17.1 0.0894 .0557 .0319 0.0240 76.09 0.0435
10 0.3964 .2334 .1345 0.5300 38.4 0.0913 .0569 .0325 0.0252 117.5 0.0345
12 0.4366 .2584 .1473 0.6478 86.5 0.0927 .0577 .0329 0.0260 167.8 0.0286"""


@pytest.mark.parametrize("line", ABC.splitlines(), ids=lambda line: f"H{line.split()[0]}")
def test_abc_table(line):
    height, *digits = line.split()
    trees = [abc(int(height), eps) for eps in (1., 0.5, 0.25)]
    pi, p, (first, steps) = trees[0].target, action_level(trees[0]), later_leaf(trees[0], 1)
    ours = [total_variation(action_level(t), t.target) for t in trees] + [kl(pi, p), max_ratio(pi, p)]
    ours += [total_variation(first_leaf(t), t.target) for t in trees] + [kl(pi, first), steps, leaf_mass(trees[0])]
    for x, d in zip(ours, digits, strict=True): near(x, d)


def test_later_leaves_of_abc():
    tree = abc(8, 1.)
    for k, tv, steps in ((1, "0.0894", "76"), (2, "0.0524", "100"), (5, "0.0183", "170"), (10, "0.0057", "285"), (20, "0.0008", "515")):
        law, taken = later_leaf(tree, k)
        near(total_variation(law, tree.target), tv); near(taken, steps)


def test_fixed_time_of_abc():
    tree, seen = abc(8, 1.), {}
    law = torch.zeros_like(tree.prob); law[0] = 1
    for t in range(1, 513):
        law = step(tree, law)
        seen[t] = (law * tree.leaf).sum().item(), total_variation(law * tree.leaf / (law * tree.leaf).sum().clamp(min=1e-300), tree.target)
    for t, mass, tv in ((64, "0.0353", "0.066"), (128, "0.0425", "0.026"), (256, "0.0434", "0.0061"), (512, "0.0435", "0.00056")):
        near(seen[t][0], mass); near(seen[t][1], tv)


def test_tours_of_abc():
    visits = tour_law(abc(8, 1.))
    assert_close(visits[abc(8).leaf].sum().item(), 2 / 3); near(visits.sum().item(), "15.33")


def test_delay():
    "Mean rewards after the first leaf are ours to four digits (.692 and .700 in print for 8 and 12 letters); a dense solve confirms them."
    rows = {4: ".558 .679 .322 .114 .0003 17.7 .333 .037", 8: ".529 .6915 .490 .124 .0030 73.0 .777 .045", 12: ".519 .6995 .578 .127 .0060 166.6 1.220 .047"}
    for height, digits in rows.items():
        tree = delay(height)
        ones = torch.zeros_like(tree.prob).masked_scatter_(tree.leaf, texts(2, height).double().mean(1))
        p, (first, steps), late = action_level(tree), later_leaf(tree, 1), later_leaf(tree, 20)[0]
        pi, tv = tree.target, [total_variation(q, tree.target) for q in (p, first, late)]
        near((pi * ones).sum().item(), "0.7311")
        for x, d in zip([(p * ones).sum().item(), (first * ones).sum().item(), *tv, steps, kl(pi, p), kl(pi, first)], digits.split(), strict=True): near(x, d)
        assert_close((tree.value / tree.true_value)[~tree.leaf].max().item(), (1 + math.e) / 2)
        if height == 8: assert_close((by_matrix(tree)[0] * ones).sum(), (first * ones).sum())


def test_depth_dial():
    rows = (".01 .393 10.2 2.0", ".25 .298 16.8 3.0", ".5 .210 28.9 5.0", ".8 .126 62.4 12.4", "1 .0913 117.5 29.0", "1.25 .0691 293 98.8", "1.5 .0573 784 339")
    for row in rows:
        c, *digits = row.split()
        tree = scaled(abc(10, 1.), float(c))
        law, steps = later_leaf(tree, 1)
        for x, d in zip([total_variation(law, tree.target), steps, 1 / leaf_mass(tree)], digits, strict=True): near(x, d)


def test_momentum_of_abc():
    for height, tv, steps in ((4, ".0721", "10.5"), (8, ".112", "29.8")):
        tree = abc(height, 1.)
        law, taken = momentum_first_leaf(tree)
        near(total_variation(law, tree.target), tv); near(taken, steps)


def test_mixing_times():
    for height, quarter, percent in ((4, 6, 26), (8, 25, 107), (12, 55, 242)):
        assert (mixing_time(complete(2, height)), mixing_time(complete(2, height), 0.01)) == (quarter, percent)
    with pytest.raises(ValueError, match="after 3 steps"): mixing_time(complete(2, 8), most=3)


def test_bottleneck():
    tree = abc(6)
    value = tree.value.clone(); value[1] /= 100
    narrow = tree.with_values(value)
    near(total_variation(first_leaf(narrow), narrow.target), "0.446")
    assert_close(stationary(narrow)[narrow.leaf] / leaf_mass(narrow), narrow.target[narrow.leaf])
    assert 10 * spectral_gap(narrow) < spectral_gap(tree)


def test_dyck_means():
    "Another five noise tables than the published ones: Z to all digits, distances roughly."
    rows = {6: (".0691", .236, .100, .041, .0026), 10: (".0334", .331, .110, .049, .0078), 14: (".0197", .412, .111, .056, .0122)}
    for height, (Z, *tvs) in rows.items():
        trees = [dyck(height, generator=torch.Generator().manual_seed(i)) for i in range(5)]
        near(trees[0].normaliser, Z)
        ours = [[total_variation(q, t.target) for q in (action_level(t), *(later_leaf(t, k)[0] for k in (1, 5, 20)))] for t in trees]
        for x, tv in zip(torch.tensor(ours).mean(0).tolist(), tvs, strict=True): assert abs(x - tv) < 0.25 * tv


# Laws that hold on every tree

def test_leaves_are_right_whatever_the_guide_says():
    for tree in many(200):
        P, mu = transition_matrix(tree), stationary(tree)
        flow = mu[:, None] * P
        assert (flow - flow.T).abs().max() < 1e-12 and (mu @ P - mu).abs().max() < 1e-12
        solved = solve_stationary(P)
        assert total_variation(solved, mu) < 1e-10 and total_variation(solved * tree.leaf / (solved * tree.leaf).sum(), tree.target) < 1e-10


def test_stationary_law_in_fractions():
    tree = complete(2, 2, tau=torch.tensor([1., 3, 2, 0]), value=torch.tensor([2., 1, 4, 1, 3, 2, 0]))
    wires = [0, Fraction(1, 2), Fraction(2), Fraction(1, 4), Fraction(3, 4), Fraction(1, 2), Fraction(0)]
    D = [wires[i] + sum(wires[c] for c in (2 * i + 1, 2 * i + 2) if i < 3) for i in range(7)]
    assert_close(stationary(tree), torch.tensor([float(d / sum(D)) for d in D], dtype=torch.float64))


def test_first_and_later_leaves_by_matrix():
    for tree in many(24):
        law, steps = by_matrix(tree)
        for ours, oracle in zip(later_leaf(tree, 1), (law, steps)): assert_close(ours, oracle, atol=1e-12, rtol=1e-9)
        again, more = torch.zeros_like(law), steps
        for leaf in law.nonzero()[:, 0].tolist():
            q, taken = by_matrix(tree, int(tree.parent[leaf]))
            again, more = again + law[leaf] * q, more + law[leaf].item() * (1 + taken)
        for ours, oracle in zip(later_leaf(tree, 2), (again, more)): assert_close(ours, oracle, atol=1e-11, rtol=1e-8)
        assert_close(later_leaf(tree, 2)[0].sum().item(), 1.)


def test_later_leaves_tend_to_the_target():
    for tree in (abc(5, 2.), delay(5), eos_example()):
        tvs = [total_variation(later_leaf(tree, k)[0], tree.target) for k in (1, 5, 60)]
        assert tvs[0] > tvs[1] > tvs[2] and tvs[2] < 1e-4
    with pytest.raises(ValueError, match="counted from 1"): later_leaf(abc(3), 0)


def test_absorb_is_linear_in_where_it_starts():
    tree = random_tree(torch.Generator().manual_seed(3), "variable depth")
    inner = (~tree.leaf).double() / (~tree.leaf).sum()
    law, visits = absorb(tree, inner)
    assert_close(law.sum().item(), 1.)
    rows = [by_matrix(tree, i) for i in (~tree.leaf).nonzero()[:, 0].tolist()]
    assert_close(law, sum(q for q, _ in rows) / len(rows)); assert_close(visits.sum().item(), sum(s for _, s in rows) / len(rows))


def test_a_perfect_guide():
    g = torch.Generator().manual_seed(0)
    for height in (1, 3, 6):
        tree = complete(3, height, torch.tensor([0.5, 0.2, 0.3]), torch.rand(3**height, generator=g) * (torch.rand(3**height, generator=g) > 0.3))
        assert_close(action_level(tree), tree.target); assert_close(first_leaf(tree), tree.target)
        assert_close(expected_steps(tree), float(height**2)); assert_close(leaf_mass(tree), 1 / (2 * height))
        law, moves = momentum_first_leaf(tree)
        assert_close(law, tree.target); assert_close(moves, float(height))


def test_rescaling_by_depth():
    for tree in (abc(5, 1.), dyck(8, generator=torch.Generator().manual_seed(0))):
        for c in (0.3, 2.):
            other = scaled(tree, c)
            assert_close(action_level(other), action_level(tree))
            assert_close(stationary(other)[tree.leaf] / leaf_mass(other), tree.target[tree.leaf])
            assert total_variation(first_leaf(other), first_leaf(tree)) > 0.01
    assert total_variation(first_leaf(scaled(abc(5, 1.), 1e-6)), action_level(abc(5, 1.))) < 1e-4


@pytest.mark.parametrize("back", [0.2, 0.5, 0.7])
def test_constant_backtracking_repairs_nothing(back):
    for tree in (abc(4, 1.), delay(5), random_tree(torch.Generator().manual_seed(5), "dead ends")) + ((eos_example(),) if back == 0.5 else ()):
        weights = neighbour_weights(tree)
        on = weights[:, 1:].sum(1)
        rows = tree.open & ~tree.leaf & (torch.arange(len(on)) > 0) & (on > 0)
        P = transition_matrix(tree, lazy=0)
        for s in rows.nonzero()[:, 0].tolist():
            P[s] = 0
            P[s, tree.parent[s]], P[s, tree.children[s]] = back, (1 - back) * weights[s, 1:] / on[s]
        mu = solve_stationary(P) * tree.leaf
        p = action_level(tree) * tree.leaf
        assert_close(mu / mu.sum(), p / p.sum())


def test_distance_to_the_stationary_law_never_grows():
    for tree in many(8, seed=1):
        mu, law, before = stationary(tree), torch.zeros_like(tree.prob), 2.
        law[0] = 1
        P = transition_matrix(tree)
        for _ in range(40):
            assert_close(step(tree, law), law @ P)
            law = step(tree, law)
            assert total_variation(law, mu) <= before + 1e-12
            before = total_variation(law, mu)


def test_spectral_gap_by_matrix():
    for tree in many(12, seed=2):
        live = stationary(tree) > 0
        values = torch.linalg.eigvals(transition_matrix(tree)[live][:, live]).real.sort().values
        assert_close(spectral_gap(tree), 1 - values[-2].item(), atol=1e-9, rtol=0)


def test_tours_count():
    "Z = W₁ · expected leaves per tour, and π* is their law."
    for tree in many():
        visits = tour_law(tree)
        W1 = neighbour_weights(tree)[0].sum()
        assert_close((W1 * visits[tree.leaf].sum()).item(), tree.normaliser)
        assert_close(visits * tree.leaf / visits[tree.leaf].sum(), tree.target)
        P, live = transition_matrix(tree, lazy=0), (tree.open & (torch.arange(len(visits)) > 0)).nonzero()[:, 0]
        assert_close(visits[live], torch.linalg.solve(torch.eye(len(live)) - P[live][:, live].T, P[0, live]), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("chi", [0., 0.4, 1.])
def test_momentum(chi):
    for tree in many(16, seed=4):
        n, (back, _, turn_up, turn_down) = len(tree.prob), turn_weights(tree, chi)
        M, node = torch.zeros(2 * n, 2 * n, dtype=torch.float64), torch.arange(n)
        M[node, n + node], M[n + node, node] = turn_up, turn_down
        M[tree.parent[1:], node[1:]] = (tree.prob * tree.value)[1:]
        M[n + node[1:], n + tree.parent[1:]] = back[1:]
        M /= M.sum(1, keepdim=True).clamp(min=1e-300)
        mu = momentum_stationary(tree, chi)
        assert_close(mu.sum().item(), 1.); assert_close(mu.T.flatten() @ M, mu.T.flatten())
        leaves = mu.sum(1) * tree.leaf
        assert_close(leaves / leaves.sum(), tree.target)
        keep = ((mu > 0) & ~tree.leaf[:, None]).T.flatten()
        visits = torch.linalg.solve(torch.eye(int(keep.sum())) - M[keep][:, keep].T, torch.eye(2 * n, dtype=M.dtype)[0, keep])
        law, steps = momentum_first_leaf(tree, chi)
        assert_close(law[tree.leaf], (visits @ M[keep])[:n][tree.leaf], atol=1e-9, rtol=1e-6)
        assert_close(steps, visits.sum().item(), atol=1e-6, rtol=1e-6)


def test_texts_of_different_length():
    short = eos_example()
    long = padded(short)
    assert total_variation(action_level(short), short.target) < 1e-12       # the guide is perfect
    assert first_leaf(short)[2] > 0.7 > 0.5 == short.target[2] and short.word(2) == "$"
    assert_close(first_leaf(long), long.target); assert_close(expected_steps(long), 16.)
    assert (long.depth[long.leaf] == 4).all() and long.word(int(long.leaves[0])) == "$···"


def test_padding_changes_no_law_of_the_long_run():
    for tree in many(12, seed=6):
        long = padded(tree)
        assert_close(long.normaliser, tree.normaliser); assert_close(long.target.max().item(), tree.target.max().item())
        assert_close(stationary(long)[long.leaf].sort()[0] / leaf_mass(long), tree.target[tree.leaf].sort()[0])


# Trees

def test_a_tree_fits_together():
    for tree in [*many(), dyck(6), parity(6), delay(3), eos_example(), padded(eos_example())]:
        assert [tree.depth[level].unique().tolist() for level in tree.levels] == [[d] for d in range(tree.height + 1)]
        assert_close(tree.target.sum().item(), 1.)
        assert (tree.target[~tree.leaf] == 0).all() and (tree.value[tree.target > 0] > 0).all()
        for level in tree.levels:                                        # the martingale, cut off where texts end
            done = tree.leaf & (tree.depth < tree.depth[level][0])
            assert_close(float((tree.reach * tree.true_value)[level].sum() + (tree.reach * tree.value)[done].sum()), tree.normaliser)


def test_words_and_constructors():
    assert [abc(2).word(i) for i in (0, 1, 6, 12)] == ["", "a", "ac", "cc"]
    assert texts(2, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    balanced = dyck(6)
    assert {balanced.word(i) for i in balanced.target.nonzero()[:, 0].tolist()} == {"()()()", "(())()", "()(())", "(()())", "((()))"}
    assert (dyck(6, generator=torch.Generator().manual_seed(1)).value == dyck(6, generator=torch.Generator().manual_seed(1)).value).all()
    checks = parity(6)
    assert all(w[:3].count("1") % 2 == 0 == w[3:].count("1") % 2 for w in map(checks.word, checks.target.nonzero()[:, 0].tolist()))
    assert one_step_late(abc(3)).value[4] == abc(3).true_value[1]
    pruned = cut(complete(2, 3), torch.arange(15) == 1, torch.full((15,), 2.))
    assert [pruned.word(i) for i in pruned.leaves.tolist()] == ["a", "baa", "bab", "bba", "bbb"] and pruned.value[1] == 2
    with pytest.raises(ValueError, match="unknown kind"): random_tree(torch.Generator(), "odd")


def test_a_changed_guide_and_a_changed_reward():
    tree = abc(3)
    other = tree.with_values(torch.ones(40), tau=torch.ones(27))
    assert other.normaliser == pytest.approx(1) and tree.normaliser == pytest.approx(8 / 27)
    assert (tree.to("cpu").value == tree.value).all() and (conductance(other)[1:] > 0).all() and degree(other)[0] == pytest.approx(1)


BAD = {"dead root": lambda: complete(2, 2, tau=torch.zeros(4)), "sum to one": lambda: complete(2, 2, prob=torch.tensor([0.5, 0.4])),
       "finite and not negative": lambda: guided(abc(2), -abc(2).value), "values must be finite": lambda: guided(abc(2), abc(2).value * torch.nan),
       "live node": lambda: guided(abc(2), abc(2).value * (abc(2).letter != 0)), "pass tau=": lambda: abc(2).with_values(abc(2).value + 1),
       "one entry per node": lambda: abc(2).with_values(torch.ones(3)), "level by level": lambda: shuffled(abc(2)), "at least one letter": lambda: alone(),
       "must be the node itself": lambda: orphan(abc(2)), "too large": lambda: transition_matrix(complete(2, 13))}


def tables(tree): return [tree.parent, tree.letter, tree.depth, tree.children, tree.prob, tree.value]
def shuffled(tree): return Tree(*(x.flip(0) for x in tables(tree)))
def orphan(tree): return Tree(tree.parent, tree.letter, tree.depth, tree.children.flip(1), tree.prob, tree.value)
def alone(): return Tree(*(x[:1] for x in tables(abc(1))))


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_is_one_sentence(sentence):
    with pytest.raises(ValueError, match=sentence): BAD[sentence]()


def test_zero_probabilities_and_dead_ends_are_fine():
    tree = complete(2, 2, torch.tensor([1., 0.]), torch.tensor([1., 1, 1, 0]))
    assert tree.target[3] == 1 and not tree.open[2] and stationary(tree)[2] == 0 and first_leaf(tree)[3] == 1
    broken = parity(6)                                                       # dead ends that the guide praises: the walk bounces
    assert action_level(broken)[~broken.leaf].sum() > 0.4 and total_variation(first_leaf(broken), broken.target) < 1e-9


def test_texts_of_different_length_by_hand():
    "Letters a, b and $ (the end): a perfect guide, and yet the first leaf is biased towards short texts; padded it is exact."
    none, long = -1, torch.tensor
    children = long([[1, 2, 3], [4, none, 5], [none, none, 6], [none] * 3, [none, none, 7], [none] * 3, [none] * 3, [none] * 3])
    prob = long([1, 1/2, 1/4, 1/4, 1/3, 2/3, 1, 1], dtype=torch.float64)
    value = long([1, 1, 1, 1/2, 1, 1, 3, 2], dtype=torch.float64)         # rewards of $, a$, b$, aa$ are 1/2, 1, 3, 2
    tree = Tree(long([none, 0, 0, 0, 1, 1, 2, 4]), long([none, 0, 1, 2, 0, 2, 2, 2]), long([0, 1, 1, 1, 2, 2, 2, 3]), children, prob, value, "ab$")
    tree = tree.with_values(tree.true_value)
    leaves = [3, 5, 6, 7]
    torch.testing.assert_close(tree.target[leaves], torch.tensor([3, 8, 18, 8], dtype=torch.float64) / 37)
    torch.testing.assert_close(action_level(tree)[leaves], tree.target[leaves])
    torch.testing.assert_close(first_leaf(tree)[leaves], torch.tensor([7/44, 8/33, 21/44, 4/33], dtype=torch.float64))
    assert abs(total_variation(first_leaf(tree), tree.target) - 0.104) < 5e-4
    flat = padded(tree)
    assert total_variation(first_leaf(flat), flat.target) < 1e-12
