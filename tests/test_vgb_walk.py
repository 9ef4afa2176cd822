"""The walk, its kernels, momentum and tours against the exact laws."""
import pytest
import torch
from torch.testing import assert_close

from llmwatch_course.vgb import exact, momentum, tours, walk
from llmwatch_course.vgb.tree import KINDS, Tree, abc, complete, dyck, padded, parity, random_tree, scaled, total_variation


def rng(seed=0): return torch.Generator().manual_seed(seed)
def shares(leaves, tree): return leaves.bincount(minlength=len(tree.prob)) / len(leaves)
def noise(law, n): return float((law * (1 - law) / (2 * torch.pi * n)).sqrt().sum())


def chi_square_p(counts, law):
    "Upper tail of Pearson's statistic, Wilson and Hilferty's normal approximation."
    live = law > 0
    assert counts[~live].sum() == 0
    expected, df = law[live] * counts.sum(), int(live.sum()) - 1
    x = float(((counts[live] - expected) ** 2 / expected).sum())
    z = ((x / df) ** (1 / 3) - (1 - 2 / (9 * df))) / (2 / (9 * df)) ** 0.5
    return float(torch.special.ndtr(torch.tensor(-z)))


def sheet_eos():
    "Four texts $, a$, b$, aa$ of three lengths."
    parent = torch.tensor([-1, 0, 0, 0, 1, 1, 3, 4])
    letter = torch.tensor([-1, 0, 2, 1, 0, 2, 2, 2])
    children = torch.full((8, 3), -1)
    children[parent[1:], letter[1:]] = torch.arange(1, 8)
    prob = torch.tensor([1, 1 / 2, 1 / 4, 1 / 4, 1 / 3, 2 / 3, 1, 1], dtype=torch.float64)
    value = torch.tensor([1, 1, 1 / 2, 1, 1, 1, 3, 2], dtype=torch.float64)
    tree = Tree(parent, letter, torch.tensor([0, 1, 1, 1, 2, 2, 2, 3]), children, prob, value, "ab$")
    return tree.with_values(tree.true_value), torch.tensor([2, 5, 6, 7])    # $, a$, b$, aa$


def matrix(table):
    "The transition matrix of a table kernel."
    ends = torch.cat([table.passed, torch.ones_like(table.passed[:1])])
    share = torch.cat([ends[:1], ends.diff(dim=0)]).T.nan_to_num()
    states = torch.arange(len(share))[:, None].expand_as(share)
    return share.new_zeros(len(share), len(share)).index_put((states, table.to.view_as(share)), share, accumulate=True)


@pytest.mark.parametrize("kind", KINDS)
def test_table_is_the_matrix_of_the_exact_module(kind):
    g = rng(1)
    for _ in range(20):
        tree = random_tree(g, kind)
        P = exact.transition_matrix(tree, lazy=0.)
        live = exact.stationary(tree) > 0
        assert_close(matrix(walk.neighbours(tree))[live], P[live], rtol=0, atol=1e-14)


def test_walkers_are_independent_of_how_many_there_are():
    tree, u = dyck(8, generator=rng()), torch.rand(300, 5, generator=rng(3), dtype=torch.float64)
    kernel = walk.neighbours(tree)
    many, ones = torch.zeros(5, dtype=torch.long), [torch.zeros(1, dtype=torch.long)] * 5
    for row in u:
        many = kernel(many, lambda n, row=row: row)
        ones = [kernel(one, lambda n, x=x: x[None]) for one, x in zip(ones, row)]
        assert many.tolist() == [int(one) for one in ones]


def test_extreme_uniforms_never_take_an_edge_of_weight_zero():
    for kind in KINDS:
        tree = random_tree(rng(5), kind)
        live = (exact.stationary(tree) > 0).nonzero()[:, 0]
        P, kernel = exact.transition_matrix(tree, lazy=0.), walk.neighbours(tree)
        for u in (0., 1 - 2.0**-53):
            there = kernel(live, lambda n, u=u: torch.full((n,), u, dtype=torch.float64))
            assert (P[live, there] > 0).all()


def test_walk_steps_is_stationary_lazy_or_not():
    tree = abc(3, eps=1.)
    mu, live = exact.stationary(tree), (exact.stationary(tree) > 0).nonzero()[:, 0]
    start = live[torch.multinomial(mu[live], 40_000, True, generator=rng())]
    for lazy in (0., 0.5):
        end = walk.walk_steps(tree, 40_000, 7, rng(1), start, lazy)
        assert chi_square_p(end.bincount(minlength=len(mu)), mu) > 1e-4


def test_lazy_steps_of_the_sheet():
    tree, n = abc(8, eps=1.), 60_000
    for steps, share in ((64, 0.0353), (128, 0.0425)):
        end = walk.walk_steps(tree, n, steps, rng(2), lazy=0.5)
        assert abs(tree.leaf[end].double().mean() - share) < 5 * (share / n) ** 0.5


def test_a_path_has_edges_only():
    tree = dyck(8, generator=rng())
    way = walk.walk_steps(tree, 50, 100, rng(), path=True)
    assert way.shape == (101, 50) and (way[0] == 0).all()
    a, b = way[:-1].flatten(), way[1:].flatten()
    assert ((tree.parent[a] == b) | (tree.parent[b] == a)).all()


def test_start_at_a_dead_node_is_refused():
    tree = abc(2)
    with pytest.raises(ValueError, match="value 0"): walk.walk_steps(tree, 1, 1, rng(), start=torch.tensor([3]))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_first_leaves_have_the_exact_law_and_cost(kind, k):
    tree, n = random_tree(rng(7), kind), 20_000
    found, (law, steps) = walk.first_leaves(tree, n, rng(8), k), exact.later_leaf(tree, k)
    assert chi_square_p(found.leaves.bincount(minlength=len(law)), law) > 1e-4
    t = found.transitions.double()
    assert abs(t.mean() - steps) <= 5 * t.std() / n**0.5 + 1e-9


def test_distinct_counts_inner_nodes_once():
    tree = dyck(6, generator=rng())
    found = walk.first_leaves(tree, 30, rng(9), k=2)
    kernel, uniform = walk.neighbours(tree), walk.uniforms(rng(9))
    rows, nodes, seen, hits = list(range(30)), torch.zeros(30, dtype=torch.long), [{0} for _ in range(30)], [0] * 30
    while rows:                                                             # the same random numbers, sets instead of tables
        nodes = kernel(nodes, uniform)
        for r, s in zip(rows, nodes.tolist()):
            if tree.leaf[s]: hits[r] += 1
            else: seen[r].add(s)
        keep = torch.tensor([hits[r] < 2 for r in rows])
        rows, nodes = [r for r in rows if hits[r] < 2], nodes[keep]
    assert found.distinct.tolist() == [len(s) for s in seen]


def test_blocks_of_walkers_change_nothing_but_the_draws():
    tree = complete(2, 15)                                                  # 65,535 nodes: blocks of 1024 walkers
    found = walk.first_leaves(tree, 1500, rng())
    t = found.transitions.double()
    assert len(t) == 1500 and tree.leaf[found.leaves].all() and abs(t.mean() - 225) < 5 * t.std() / 1500**0.5


def test_too_few_steps_are_an_error_not_a_bias():
    with pytest.raises(RuntimeError, match="bias"): walk.first_leaves(abc(6), 100, rng(), max_steps=20)
    with pytest.raises(RuntimeError, match="bias"): tours.run_tours(abc(6), 100, rng(), max_steps=5)


def test_dyck_cost_of_the_sheet():
    costs = [walk.first_leaves(dyck(14, generator=rng(s)), 200, rng(s), k=20) for s in range(3)]
    assert 600 < torch.stack([c.transitions.double().mean() for c in costs]).mean() < 1100
    assert 75 < torch.stack([c.distinct.double().mean() for c in costs]).mean() < 125


# kernels

def one_step(kernel, tree, node, n=40_000):
    return kernel(torch.full((n,), node), walk.uniforms(rng(11))).bincount(minlength=len(tree.prob))


@pytest.mark.parametrize("kind", KINDS)
def test_rejection_is_the_exact_walk(kind):
    tree = random_tree(rng(12), kind)
    P = exact.transition_matrix(tree, lazy=0.)
    M = float((exact.at(tree.value, tree.children).amax(1) / tree.value.clamp(min=1e-300))[tree.open].max())
    for bound in (None, M):
        kernel = walk.ByRejection(tree, bound)
        for s in [0, *(exact.stationary(tree) > 0).nonzero()[-6:, 0].tolist()]:
            if (P[s] > 0).sum() > 1: assert chi_square_p(one_step(kernel, tree, s), P[s]) > 1e-5
            else: assert one_step(kernel, tree, s)[P[s] > 0] == 40_000


def test_proposals_are_as_predicted():
    tree = dyck(8, generator=rng())
    s, M = 1, 5.
    if (exact.at(tree.value, tree.children).amax(1) > M * tree.value)[tree.open].any(): M = 40.
    kernel = walk.ByRejection(tree, M)
    one_step(kernel, tree, s)
    r = float(exact.neighbour_weights(tree)[s, 1:].sum() / tree.value[s])
    assert abs(kernel.proposals / 40_000 / ((1 + M) / (1 + r)) - 1) < 0.05


def test_a_wrong_bound_is_refused():
    with pytest.raises(ValueError, match="no bound"): walk.ByRejection(abc(4, 1.), 1.1)


@pytest.mark.parametrize("K, tv", [(1, 0.123), (4, 0.069)])
def test_candidates_have_the_bias_of_the_sheet(K, tv):
    tree, n = abc(5, eps=1.), 4000
    way = walk.walk_steps(tree, n, 600, rng(), kernel=walk.candidates(tree, K), path=True)[100:].flatten()
    assert abs(total_variation(shares(way[tree.leaf[way]], tree), tree.target) - tv) < 0.01


def test_candidates_are_right_with_a_perfect_guide():
    tree, n = abc(4), 4000
    way = walk.walk_steps(tree, n, 400, rng(), kernel=walk.candidates(tree, 2), path=True)[100:].flatten()
    assert total_variation(shares(way[tree.leaf[way]], tree), tree.target) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_metropolis_has_mass_reach_times_value(kind):
    tree = random_tree(rng(13), kind)
    mass = torch.where(tree.open, tree.reach * tree.value, 0.)
    mu, live = mass / mass.sum(), mass.nonzero()[:, 0]
    start = live[torch.multinomial(mu[live], 40_000, True, generator=rng())]
    end = walk.walk_steps(tree, 40_000, 5, rng(14), start, kernel=walk.metropolis(tree))
    assert chi_square_p(end.bincount(minlength=len(mu)), mu) > 1e-4


def test_metropolis_first_leaf_is_biased_even_with_a_perfect_guide():
    tree = dyck(12, noise=0., generator=rng())
    found = walk.first_leaves(tree, 20_000, rng(), kernel=walk.metropolis(tree))
    assert abs(total_variation(shares(found.leaves, tree), tree.target) - 0.0435) < noise(tree.target, 20_000) + 0.005


def test_depth_factor_changes_cost_not_the_stationary_leaves():
    tree = abc(6, eps=1.)
    steps = [walk.first_leaves(scaled(tree, c), 2000, rng()).transitions.double().mean() for c in (0.25, 1., 1.25)]
    assert steps[0] < steps[1] < steps[2]


def test_first_reward_of_parity_needs_going_back():
    tree = parity(9)
    found = walk.first_leaves(tree, 2000, rng(), k=10)
    assert total_variation(shares(found.leaves, tree), tree.target) < total_variation(exact.action_level(tree), tree.target)


# momentum

@pytest.mark.parametrize("chi", [0., 0.3, 1.])
@pytest.mark.parametrize("kind", KINDS)
def test_momentum_stationary_law(kind, chi):
    tree = random_tree(rng(15), kind)
    mu = exact.solve_stationary(matrix(momentum.momentum_table(tree, chi))).view(2, -1)
    assert_close(mu, exact.momentum_stationary(tree, chi).T, rtol=0, atol=1e-10)
    leaves = mu.sum(0) * tree.leaf
    assert_close(leaves / leaves.sum(), tree.target, rtol=0, atol=1e-10)


def test_momentum_is_ballistic_with_a_perfect_guide():
    tree = abc(7)
    found = momentum.momentum_leaves(tree, 500, rng(), k=3)
    assert (found.transitions == 7 + 2 * (2 * 7 + 2)).all()                 # down; then turn, up, turn, down, twice
    found = momentum.momentum_leaves(tree, 20_000, rng())
    assert chi_square_p(found.leaves.bincount(minlength=len(tree.prob)), tree.target) > 1e-4


@pytest.mark.parametrize("height, tv, steps", [(4, 0.0721, 10.5), (8, 0.112, 29.8)])
def test_momentum_numbers_of_the_sheet(height, tv, steps):
    tree = abc(height, eps=1.)
    law, expected = exact.momentum_first_leaf(tree)
    assert abs(total_variation(law, tree.target) - tv) < 5e-4 and abs(expected - steps) < 0.05
    found = momentum.momentum_leaves(tree, 20_000, rng())
    t = found.transitions.double()
    assert abs(t.mean() - expected) < 5 * t.std() / 20_000**0.5
    assert chi_square_p(found.leaves.bincount(minlength=len(law)), law) > 1e-4


def test_chi_must_be_a_share():
    with pytest.raises(ValueError, match="chi"): momentum.momentum_table(abc(2), 1.5)


# tours

@pytest.mark.parametrize("kind", KINDS)
def test_tours_visit_leaves_as_often_as_they_should(kind):
    tree, n = random_tree(rng(16), kind), 20_000
    found, law = tours.run_tours(tree, n, rng(17)), exact.tour_law(tree)
    t = found.steps.double()
    assert abs(t.mean() - law.sum()) <= 5 * t.std() / n**0.5 + 1e-9
    for y in tree.leaves[:8]:
        visits = tours.sums(found, (torch.arange(len(law)) == y).double())
        assert abs(visits.mean() - law[y]) <= 5 * visits.std() / n**0.5 + 1e-9


def test_tour_numbers_of_the_sheet():
    law = exact.tour_law(abc(8, eps=1.))
    found = tours.run_tours(abc(8, eps=1.), 50_000, rng())
    assert abs(float(law.sum()) - 15.33) < 0.005 and abs(float(found.steps.double().mean()) - 15.33) < 0.5
    assert abs(len(found.tour) / 50_000 - 2 / 3) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_normaliser_is_unbiased(kind):
    tree = random_tree(rng(18), kind)
    estimate, se = tours.normaliser_estimate(tours.run_tours(tree, 30_000, rng(19)))
    assert abs(estimate - tree.normaliser) <= 5 * se + 1e-9


def test_standard_errors_mean_what_they_say():
    tree, f, z = abc(4, eps=1.), (abc(4).letter == 0).double(), []
    for seed in range(150):
        mean, se = tours.tour_mean(tours.run_tours(tree, 400, rng(seed)), f)
        z.append((mean - float(tree.target @ f)) / se)
    z = torch.tensor(z)
    assert abs(z.mean()) < 0.35 and 0.8 < z.std() < 1.25


def test_tours_without_leaves_say_so():
    empty = tours.Tours(abc(4), torch.tensor([2, 2]), torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))
    with pytest.raises(ValueError, match="run more"): tours.tour_shares(empty)
    assert tours.normaliser_estimate(empty) == (0., 0.)


def test_variable_length_biases_the_first_leaf_and_nothing_else():
    tree, texts = sheet_eos()
    assert_close(tree.target[texts], torch.tensor([3, 8, 18, 8], dtype=torch.float64) / 37)
    law = torch.tensor([7 / 44, 8 / 33, 21 / 44, 4 / 33], dtype=torch.float64)
    assert_close(exact.first_leaf(tree)[texts], law)
    found = walk.first_leaves(tree, 40_000, rng())
    assert chi_square_p(found.leaves.bincount(minlength=8)[texts], law) > 1e-4
    assert total_variation(tours.tour_shares(tours.run_tours(tree, 60_000, rng())), tree.target) < 0.01
    long = padded(tree)
    found = walk.first_leaves(long, 40_000, rng())
    assert chi_square_p(found.leaves.bincount(minlength=len(long.prob)), long.target) > 1e-4
