"""Chapter 3: a step of Flow-GRPO beside TRL's trainer, batched rollouts beside one at a time, the loop without a model, searching. About a minute on two cores."""
import statistics, tempfile, time
from dataclasses import replace
from pathlib import Path
import torch
from llmwatch_course.agents import world
from llmwatch_course.agents.flow import DirectExecutor, LastValue, Limits, Modules, RuleVerifier, run_flow
from llmwatch_course.agents.flow_grpo import flow_grpo_loss, flow_rows, group_advantage
from llmwatch_course.agents.handover import quiet, trl_trainer, write_llama
from llmwatch_course.agents.language_planner import update
from llmwatch_course.agents.language_training import Recipe
from llmwatch_course.agents.memory import Plan
from llmwatch_course.agents.planner import logps, planner
from llmwatch_course.agents.rollouts import rollout, sampled
from llmwatch_course.agents.search import BM25, fast_bm25
from llmwatch_course.agents.text_world import TextWorld
from llmwatch_course.agents.tools import Toolset, tool
from llmwatch_course.foundations.settings import need
from tests.benchmarks import seconds, side_by_side

P, G, TURNS, STEPS = 16, 8, 5, 8
WORLD = TextWorld()


def rows() -> list[dict]:
    return [text_trainer(), trainer(1, "the same tokens"), trainer(TURNS, "a row for each turn beside TRL's transcripts: 2.8 times the tokens to train on"), batching(), overhead(), searching()]


def rate(what, ours: list[float], theirs: list[float], n: int, unit: str, aim: str) -> dict:
    "Medians a second of n things, from seconds measured in pairs."
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    mine, peer = (round(n / statistics.median(s), 1) for s in (ours, theirs))
    return dict(what=what, ours=mine, peer=peer, ratio=round(statistics.median(ratios), 2), spread=f"{ratios[0]:.2f}-{ratios[-1]:.2f}", unit=f"{unit}/s", aim=aim)


def text_trainer(prompts=4, tokens=32):
    "One turn of text, no tools: TRL generates by itself, ours by `LanguagePlanner.act`; the same tiny Llama, prompts, number of tokens and one update a step."
    recipe, steps = Recipe.small(), STEPS + 1
    mine, rows, n = recipe.planner(), WORLD.queries(prompts * steps, 0), prompts * G
    mine.most, mine.ends = tokens, torch.zeros_like(mine.ends)
    texts = [f"Question: {q.text}\nAction:" for q in rows]
    optimizer, generator = torch.optim.AdamW(mine.decoder.parameters(), 1e-4), torch.Generator().manual_seed(0)
    def step(s):
        samples = mine.act([mine.encode(t) for t in texts[s * prompts:(s + 1) * prompts] for _ in range(G)], generator)
        won = torch.tensor([float("e" in mine.line(x.action_ids)) for x in samples])
        part = flow_rows([[replace(x, truncated=False)] for x in samples], group_advantage(won, torch.arange(n) // G))
        update(mine, part, optimizer)
    with tempfile.TemporaryDirectory() as folder, quiet():
        llama = write_llama(mine.decoder, mine.tokenizer, Path(folder))
        trl = trl_trainer(llama, texts, None, G, Path(folder) / "run", per_device_train_batch_size=n, max_steps=steps, learning_rate=1e-4, loss_type="grpo", max_grad_norm=1.,
                          max_completion_length=tokens, generation_kwargs={"min_new_tokens": tokens})
        trl.reward_funcs[0] = lambda completions, **_: [float("e" in c) for c in completions]
        theirs = watched(trl)
    ours = [seconds(lambda s=s: step(s)) for s in range(steps)]
    return rate(f"writing and learning beside TRL's GRPOTrainer, {prompts} prompts x {G}, {tokens} tokens each, 0.02 M weights", ours[1:], theirs[1:], n, "rollouts", ">= 3")


def trainer(turns, about):
    "The same tiny Llama, queries, group size and turns; each plays its own rollouts and takes one update a step."
    mine, theirs = planner(), trl_steps(planner(), STEPS + 1, turns)
    optimizer = torch.optim.AdamW(mine.parameters(), 1e-4)
    ours = [seconds(lambda s=s: our_step(mine, optimizer, s, turns)) for s in range(STEPS + 1)]
    return rate(f"rollouts with update beside TRL's GRPOTrainer, {P} queries x {G}, up to {turns} turn{'s'[:turns > 1]}, {about}", ours[1:], theirs[1:], P * G, "rollouts", "")


def our_step(model, optimizer, step, turns):
    "Rollouts of all queries at once, advantages over groups, one update."
    queries = world.draw(P, step).repeat(G)
    done = rollout(sampled(model), queries, turns, step)
    adv = group_advantage(done.right.float(), torch.arange(P * G) // G)
    who = torch.cat([t.who for t in done.turns])
    now, old = torch.cat([logps(model, t.state, t.action) for t in done.turns]), torch.cat([t.logp for t in done.turns])
    loss, _ = flow_grpo_loss(now, old, None, torch.ones_like(old), adv[who], who)
    optimizer.zero_grad(); loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
    optimizer.step()


def word_tokenizer():
    "The words of the world as a tokenizer of transformers."
    transformers, tokenizers = need("transformers", "lm"), need("tokenizers", "lm")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(world.WORDS)}, unk_token="bad"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="bad", pad_token="-", eos_token="answer", bos_token="answer")


def watched(trl) -> list[float]:
    "Train; seconds of each step."
    times: list[float] = []
    class Watch(need("transformers", "lm").TrainerCallback):
        def on_step_begin(self, *_, **__): times.append(time.perf_counter())
    trl.add_callback(Watch())
    trl.train()
    return [b - a for a, b in zip(times, [*times[1:], time.perf_counter()])]


def trl_steps(model, steps: int, turns: int) -> list[float]:
    "Seconds of each step of TRL's trainer in the token world."
    with tempfile.TemporaryDirectory() as folder, quiet():
        llama = write_llama(model, word_tokenizer(), Path(folder))
        return watched(trl_trainer(llama, [str(i) for i in range(P * steps)], lambda texts, trl: transcripts(texts, trl, turns), G, Path(folder) / "run",
                                   per_device_train_batch_size=P * G, max_steps=steps, learning_rate=1e-4, loss_type="grpo", max_grad_norm=1.))


@torch.no_grad()
def transcripts(texts, trl, turns: int) -> dict:
    "Rollouts as a user of TRL would write them: `generate` for three tokens, the tool's answer behind it, and on."
    step = int(texts[0]) // P
    queries = world.draw(P, step).repeat(G)
    n, who = len(texts), torch.arange(len(texts))
    text, mask = world.question(queries), torch.zeros(n, 0, dtype=torch.long)
    out = [None] * n
    for t in range(turns):
        mine = queries.take(who)
        full = trl.model.generate(text, attention_mask=torch.ones_like(text), do_sample=True, top_k=0, max_new_tokens=3, min_new_tokens=3)
        action, roll = full[:, -3:], world.dice(step, torch.arange(len(who)), t, torch.arange(2)[:, None])
        result = world.call(mine, action, *roll)
        answer = torch.where(world.is_number(result), result - world.ZERO, -1)
        stop = (answer >= 0) & ((mine.kind != world.KINDS.index("sum")) | (action[:, 0] >= world.CALC)) | (t == turns - 1)
        text = torch.cat([full, result[:, None], torch.full_like(result[:, None], world.ACT)], 1)
        mask = torch.cat([mask, torch.ones_like(action), torch.zeros(len(who), 2, dtype=torch.long)], 1)
        for i in stop.nonzero()[:, 0].tolist(): out[who[i]] = (text[i, 4:-2].tolist(), mask[i, :-2].tolist(), float(answer[i] == mine.truth[i]))
        text, mask, who = text[~stop], mask[~stop], who[~stop]
        if not len(who): break
    ids, marks, won = zip(*out)
    return {"prompt_ids": world.question(queries).tolist(), "completion_ids": list(ids), "logprobs": [[0.] * len(i) for i in ids], "env_mask": list(marks), "won": list(won)}


def batching():
    "All rollouts of a step at once, beside one after the other."
    model, queries = planner(), world.draw(P, 0).repeat(G)
    def one_by_one():
        for i in range(P * G): rollout(sampled(model), queries.take(torch.tensor([i])), TURNS, 0)
    both = [(seconds(lambda: rollout(sampled(model), queries, TURNS, 0)), seconds(one_by_one)) for _ in range(4)][1:]
    return rate(f"{P * G} rollouts of {TURNS} turns in one batch, beside one at a time", *map(list, zip(*both)), P * G, "rollouts", ">= 5")


@tool(isolated=False)
def nothing(of: str) -> str:
    "Say that there is nothing."
    return f"nothing about {of}"


class Wanderer:
    "A planner that thinks of something new each time, at once."
    def plan(self, memory, tools): return Plan("look", "nothing", {"of": str(len(memory.turns))})


def overhead(turns=10):
    "The loop alone: memory, whitelist, verdict, budget, digest; beside the same calls by hand."
    modules = Modules(Wanderer(), DirectExecutor(), RuleVerifier(lambda memory: False), LastValue())
    with Toolset(nothing) as tools:
        def by_hand():
            for t in range(turns): tools.call("nothing", {"of": str(t)})
        return side_by_side("one turn of run_flow without a model, beside its tool call alone", lambda: run_flow("?", modules, tools, Limits(turns=turns)), by_hand, "ours <= 1 ms", per=turns)


def searching(n=300):
    "The same questions to our BM25 and to bm25s, on the two thousand documents of the text world."
    own, fast = BM25(WORLD.documents), fast_bm25(WORLD.documents)
    asked = [f"manager of {name}" for name in WORLD.people[:n]]
    def ask(index):
        for text in asked: index.top(text, 3)
    row = side_by_side("one question to 2,000 documents, own BM25 beside bm25s", lambda: ask(own), lambda: ask(fast), per=n)
    return row
