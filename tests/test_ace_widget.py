"""The lifelines show the playbook of each step, the diff what changed in it, and every control moves the picture."""
import base64, io, re, time
import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from llmwatch_course.ace import widget as W
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.playbook import Bullet, Playbook, tokens

matplotlib.use("agg")
TOLD = dict(seed=0, budget=360, wrong=4, named=.5)


def pixels(figure):
    "The figure as numbers."
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("budget", [180, 360, 720])
@pytest.mark.parametrize("wrong", [0, 4, 1])
def test_a_story_keeps_its_budget_and_joins_up(budget, wrong):
    moments = W.story(1, budget, wrong)
    assert len(moments) == W.STEPS + 2 and all(tokens(m.after.render()) <= budget for m in moments)
    assert all(a.after is b.before for a, b in zip(moments, moments[1:])) and moments[0].before == Playbook()


@pytest.mark.parametrize("seed", range(6))
def test_the_lines_are_the_playbook(seed):
    moments = W.story(seed, 180, 4, .5)
    born, end = W.lives(moments), len(moments)
    for step, moment in enumerate(moments):
        alive = {id for id, events in born.items() if any(a <= step and (step < b or b == end) for a, b in W.spans(events, end))}
        assert alive == {b.id for b in moment.after.bullets if b.live}


def test_votes_are_all_there():
    moments = W.story(**TOLD)
    for id, events in W.lives(moments).items():
        kinds = [e.kind for e in events]
        last = moments[-1].after.get(id)
        assert (last.helpful > 0) <= ("helpful" in kinds) and kinds[0] == "written" and [e.step for e in events] == sorted(e.step for e in events)


def test_the_hand_written_twin_is_merged_at_its_step():
    moments = W.story()
    assert moments[0].what == moments[W.BY_HAND].what == "by hand" and [line.sign for line in W.diff(moments[0])] == ["+", "+"]
    line, = W.diff(moments[W.BY_HAND])
    assert line.sign == "-" and line.text.endswith(f"{W.AGAIN}") and "→ [" in line.text
    assert W.FIRST[0] in moments[W.BY_HAND].after.render() and W.AGAIN not in moments[W.BY_HAND].after.render()


def moment(ops, start=()):
    before = Playbook(start)
    return W.Moment("x", before, apply(before, Delta(ops))[0])


def test_each_kind_of_change_has_its_line():
    a, b = Bullet("apis-a", "apis", "say a"), Bullet("apis-b", "apis", "say b")
    def said(*ops): return [tuple(line) for line in W.diff(moment(ops, (a, b)))]
    assert said(Op("ADD", section="apis", content="c"))[0][0] == "+" and said(Op("TAG", id="apis-a", exposures=3)) == []
    assert said(Op("TAG", id="apis-a", helpful=2), Op("RETIRE", id="apis-b")) == [("-", "[apis-b] say b"), ("~", "[apis-a] helpful 0 → 2")]
    assert said(Op("UPDATE", id="apis-a", content="other", expect=0)) == [("~", "[apis-a] other")] and said(Op("PIN", id="apis-a")) == [("~", "[apis-a] pinned False → True")]
    assert ("-", "[apis-b] → [apis-a] say b") in said(Op("MERGE", ids=["apis-a", "apis-b"], keep="apis-a"))
    gone = W.Moment("x", Playbook([Bullet("apis-a", "apis", "a", status="retired")]), Playbook([a]))
    assert W.diff(gone) == [W.Line("+", "[apis-a] again: say a")]


def test_long_lines_and_long_diffs_are_cut():
    figure = W.frame([moment([Op("ADD", section="apis", content=f"{i} " + "word " * 90) for i in range(20)])], 0)
    texts = [t.get_text() for t in figure.axes[1].texts]
    assert len(texts) == W.SHOWN + 1 and texts[-1] == f"… and {20 - W.SHOWN} more" and max(map(len, texts)) <= W.WIDTH + 2 and texts[0].endswith("…")
    assert "nothing to change" in [t.get_text() for t in W.frame([moment([])], 0).axes[1].texts]


@pytest.mark.parametrize("step", [-1, W.STEPS + 2])
def test_a_step_outside_the_story_gets_a_sentence(step):
    with pytest.raises(ValueError, match=rf"^step is {step}, but this story has steps 0 to {W.STEPS + 1}$"): W.frame(W.story(), step)


def test_frames_are_pure_and_say_who_played():
    import matplotlib.pyplot as plt
    figure = W.frame(W.story(), 5)
    assert np.array_equal(pixels(figure), pixels(W.frame(W.story(), 5))) and not plt.get_fignums(), "no figure is left open"
    assert "programs" in figure.axes[0].get_title(loc="left")


def test_words():
    said = W.in_words(W.story(), W.BY_HAND)
    assert said.startswith(f"Step {W.BY_HAND} of {W.STEPS + 1}, by hand.") and "gone [" in said


def test_every_control_moves_the_picture():
    pytest.importorskip("ipywidgets")
    step, seed, budget, wrong, named, picture = W.ui().children
    seen = picture.value
    for control, value in ((step, 40), (step, 61), (budget, 180), (wrong, 4), (named, 0.), (seed, 3), (budget, 720), (named, .5), (wrong, 1)):
        control.value = value
        assert picture.value != seen, f"{control.description} moved and the picture did not"
        seen = picture.value
    png = re.match(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', seen)
    assert png and matplotlib.image.imread(io.BytesIO(base64.b64decode(png[1]))).shape[2] == 4


def test_hostile_text_stays_text():
    "What a bullet says can't end the attribute that holds it."
    shown = W.image(W.frame([moment([Op("ADD", section="apis", content='"><script>alert(1)</script> $\\frac')])], 0), '"><script>')
    assert "<script>" not in shown and shown.count("<") == 1


def test_pictures_come_in_time():
    "Processor time, the best of several, against an empty figure on the same machine."
    import matplotlib.pyplot as plt
    def empty(_): figure, _ = plt.subplots(figsize=(9, 4), layout="constrained"); W.image(figure, ""); plt.close(figure)
    def best(f, *several):
        taken = []
        for x in several: start = time.process_time(); f(x); taken.append(time.process_time() - start)
        return min(taken)
    assert best(lambda step: W.image(W.frame(W.story(), step), ""), *range(30, 40)) < 4 * best(empty, *range(5))
