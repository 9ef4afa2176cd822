"Intervals hold the truth as often as they say, in closed form or by counting; the GRIM test accepts exactly what can be."
import math, subprocess, sys
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from llmwatch_course.foundations.statistics import bootstrap, middle, reachable, resamples, wilson


@pytest.mark.parametrize("n", [1, 5, 30, 127])
def test_wilson_inverts_the_score_test(n):
    "p lies in the interval exactly when the score test at p does not reject."
    for k in range(n + 1):
        low, high = wilson(k, n)
        for p in [i / 200 for i in range(1, 200)]:
            z = abs(k / n - p) / (p * (1 - p) / n)**0.5
            if abs(z - 1.96) > 1e-6: assert (low <= p <= high) == (z <= 1.96), (k, p)


@given(st.integers(1, 10**6), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_wilson_is_an_interval(n, data):
    k, z = data.draw(st.integers(0, n)), data.draw(st.floats(0.1, 5))
    low, high = wilson(k, n, z)
    assert 0 <= low <= k / n <= high <= 1 and wilson(n - k, n, z) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert (low == 0) == (k == 0) and (high == 1) == (k == n)


def test_wilson_at_the_edges():
    # Newcombe (1998), table I, method 3
    for (k, n), ends in {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}.items():
        assert wilson(k, n) == pytest.approx(ends, abs=6e-5)
    assert wilson(0, 0) == (0, 1) and wilson(2.5, 5) == pytest.approx((0.1705, 0.8295), abs=1e-4)
    for k, n in ((-1, 5), (6, 5), (1, 0)):
        with pytest.raises(ValueError, match=f"{k} of {n} is no share"): wilson(k, n)


def test_bootstrap_by_hand():
    "The four resamples of two groups, one of three values and one of one: the mean is a ratio of sums, not a mean of means."
    low, high = bootstrap([0., 0., 0., 6.], np.random.default_rng(0), ["a", "a", "a", "b"])
    assert (low, high) == (0, 6)
    class Script:
        def integers(self, low, n, shape): return np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    drawn = np.array([0, 1.5, 1.5, 6])
    assert bootstrap([0., 0., 0., 6.], Script(), list("aaab"), 4) == pytest.approx(np.quantile(drawn, [.025, .975]))


@pytest.mark.parametrize("rng", [lambda i: np.random.default_rng(i), lambda i: torch.Generator().manual_seed(i)], ids=["numpy", "torch"])
def test_bootstrap_covers_when_groups_are_drawn(rng):
    "Six values of each of thirty groups share most of their luck."
    noise, whose, hits = np.random.default_rng(5), np.repeat(np.arange(30), 6), []
    for i in range(200):
        x = np.repeat(noise.normal(size=30), 6) + 0.3 * noise.normal(size=180)
        ends = bootstrap(x, rng(i), whose, 300), bootstrap(x, rng(i), None, 300)
        hits.append([low <= 0 <= high for low, high in ends])
    by_group, by_value = np.mean(hits, 0)
    assert 0.88 < by_group < 0.985 and by_value < 0.7


def test_bootstrap_of_what_is_known():
    x = torch.randn(400, generator=torch.Generator().manual_seed(1))
    rng = lambda: torch.Generator().manual_seed(2)
    low, high = bootstrap(x, rng())
    assert low < x.mean() < high and (high - low) == pytest.approx(2 * 1.96 * float(x.std()) / 20, rel=0.1)
    assert bootstrap(x, rng()) == bootstrap(x.tolist(), rng()) == bootstrap(x.requires_grad_(), rng(), torch.arange(400) * 3)
    assert bootstrap(torch.full((9,), 0.5), rng()) == (0.5, 0.5)
    for few in ([], [1.]): assert all(map(math.isnan, bootstrap(few, rng())))
    assert all(map(math.isnan, bootstrap([1., 2., 3.], rng(), [7, 7, 7])))


def test_draws_are_those_of_the_generator():
    "One call for all samples draws what one call a sample would."
    g, h = (torch.Generator().manual_seed(3) for _ in range(2))
    assert (resamples(7, 50, g) == torch.stack([torch.randint(7, (7,), generator=h) for _ in range(50)]).numpy()).all()
    assert (resamples(7, 50, np.random.default_rng(3)) == np.random.default_rng(3).integers(0, 7, (50, 7))).all()
    assert middle(range(1001)) == (25, 975)


@pytest.mark.parametrize("n, decimals", [(90, 3), (139, 3), (80, 3), (80, 2), (28, 2), (7, 1)])  # 1/80 = 0.0125 may be printed 0.012 or 0.013
def test_grim_accepts_exactly_what_can_be(n, decimals):
    step = 10**decimals
    possible = {round(step * k / n + side * 1e-7) for k in range(2 * n + 1) for side in (-1, 1)}
    for m in range(2 * step + 1): assert reachable(m / step, n, decimals) == (m in possible), m


def test_nothing_heavy_is_loaded_for_a_share():
    code = "import sys; from llmwatch_course.foundations.statistics import wilson; wilson(1, 2); print({'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
