"""What the library does is what the exercises of chapter 8 ask for."""
import pytest
import torch
from llmwatch_course.vgb import checks, exact
from llmwatch_course.vgb.tree import Tree, abc


def as_tree(prob, value):
    "A tree of the checks as the library has it: one node per word, level by level; and the words."
    names = sorted({s[-1] for s in value if s})
    words = sorted(value, key=lambda s: (len(s), s))
    number = {s: i for i, s in enumerate(words)}
    children = torch.full((len(words), len(names)), -1)
    for s in words[1:]: children[number[s[:-1]], names.index(s[-1])] = number[s]
    parent, letter = [-1] + [number[s[:-1]] for s in words[1:]], [-1] + [names.index(s[-1]) for s in words[1:]]
    p, v = (torch.tensor([float(x[s]) for s in words], dtype=torch.float64) for x in (prob, value))
    return Tree(torch.tensor(parent), torch.tensor(letter), torch.tensor([len(s) for s in words]), children, p, v, "".join(names)), words


def named(words, law): return {s: x for s, x in zip(words, law.tolist()) if x}


def test_weights():
    def weights(prob, value, s):
        tree, words = as_tree(prob, value)
        i = words.index(s)
        row = exact.neighbour_weights(tree)[i].tolist()
        down = {words[t]: w for t, w in zip(tree.children[i].tolist(), row[1:]) if t >= 0}
        return down | ({s[:-1]: row[0]} if s else {})
    checks.check_neighbour_weights(weights)


@pytest.mark.parametrize("check, law", [("check_stationary", exact.stationary), ("check_first_leaf", exact.first_leaf)])
def test_laws(check, law):
    def answer(prob, value):
        tree, words = as_tree(prob, value)
        return named(words, law(tree))
    getattr(checks, check)(answer)


def test_amplification():
    def answer(eps, height):
        if height > 12: return checks.RIGHT["check_amplification"][0](eps, height)
        tree = abc(height, eps)
        law = exact.action_level(tree)
        return exact.kl(tree.target, law), exact.max_ratio(tree.target, law)
    checks.check_amplification(answer)


def test_the_lifted_law_is_that_of_the_exercise():
    for name, (prob, value) in checks._TREES.items():
        tree, words = as_tree(prob, value)
        mass = {s: m for (s, going), m in checks._states(prob, value).items() if going == "down"}
        law = exact.momentum_stationary(tree)
        law = dict(zip(words, law.sum(1).tolist()))
        total = sum(law.values())
        for s, m in mass.items(): assert abs(law[s] / total - float(m / sum(mass.values()))) < 1e-12, (name, s)
