"""Our loss beside TRL's on batches that its trainer made, Agent Lightning's formula, its configuration, and the agent behind a stand-in gateway."""
import asyncio, json, random, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
import pytest
import torch
from llmwatch_course.agents.flow_grpo import flow_grpo_loss, flow_rows, group_advantage
from llmwatch_course.agents.handover import AGENT_LIGHTNING, FlowAgent, apart, as_trl, per_rollout_mean, record, rows_of, to_transformers, trl_trainer, write_llama
from llmwatch_course.agents.language_planner import LanguagePlanner, letters, noisy, outcomes, play
from llmwatch_course.agents.language_training import Recipe, trl_language
from llmwatch_course.agents.text_world import TextWorld
from llmwatch_course.foundations.decoder import Config, Decoder, renamed

pytest.importorskip("trl")
WORLD, ABC = TextWorld(60), letters()
CONFIG = Config.tiny(channels=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=64, vocab=len(ABC), context=4096)
CASES = {"flow": (dict(loss_type="grpo"), {}), "token": (dict(loss_type="dapo"), dict(agg="token")), "turn": (dict(loss_type="grpo", importance_sampling_level="sequence"), dict(level="turn"))}


def decoder(seed=0): return Decoder(CONFIG).initialise(torch.Generator().manual_seed(seed))


def games_of(turns, transcript, seed=0):
    planner, queries = LanguagePlanner(decoder(), ABC), [q for q in WORLD.queries(3, seed) for _ in range(4)]
    return play(planner, WORLD, queries, range(12), turns=turns, transcript=transcript, write=noisy(WORLD, planner, 0.3, random.Random(seed)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory): return write_llama(decoder(), ABC, tmp_path_factory.mktemp("llama"))


def test_names_go_both_ways():
    ours = decoder().state_dict()
    back = renamed(to_transformers(decoder()), CONFIG.layers)
    assert set(back) == set(ours) and all(torch.equal(back[k], ours[k]) for k in ours)


@pytest.mark.parametrize("case, turns", [("flow", 1), ("flow", 3), ("token", 3), ("turn", 3)])
def test_the_loss_is_trls(llama, tmp_path, case, turns):
    "One turn, and transcripts with tool text masked; two updates, so that the ratio moves and clipping bites."
    games = games_of(turns, True)
    texts, trl, ours = list(dict.fromkeys(r.query.text for r in games)), *CASES[case]
    updates = record(trl_trainer(llama, texts, lambda *_: as_trl(games), 4, tmp_path, max_steps=2, num_iterations=2, learning_rate=2e-3, beta=0.04, **trl))
    for u in updates:
        found = apart(u, CONFIG, beta=0.04, **ours)
        assert found["apart"] <= 1e-6 and found["gradients apart"] <= 1e-6 and found["largest gradient"] > 1e-3
    assert found["clipped"] > 0
    won, group = outcomes(games, 4)
    torch.testing.assert_close(updates[0].batch["advantages"].sort().values, group_advantage(won, group).sort().values)
    assert int(rows_of(updates[0].batch).mask.sum()) == sum(len(s.action_ids) for r in games for s in r.samples)


def test_a_forgotten_setting_shows(llama, tmp_path):
    games = games_of(1, True)
    texts = list(dict.fromkeys(r.query.text for r in games))
    updates = record(trl_trainer(llama, texts, lambda *_: as_trl(games), 4, tmp_path, max_steps=2, num_iterations=2, learning_rate=2e-3, beta=0.04, loss_type="grpo", use_bias_correction_kl=True))
    assert apart(updates[1], CONFIG, beta=0.04)["gradients apart"] > 1e-4


def test_as_trl_marks_what_the_planner_wrote():
    games = games_of(4, True)
    out = as_trl(games)
    for i, r in enumerate(games):
        marked = [t for t, m in zip(out["completion_ids"][i], out["env_mask"][i]) if m]
        assert marked == [t for s in r.samples for t in s.action_ids] and len(out["logprobs"][i]) == len(out["env_mask"][i]) == len(out["completion_ids"][i])
    with pytest.raises(ValueError, match="no transcript"): as_trl([r for r in games_of(4, False) if len(r.samples) > 1])


@pytest.mark.parametrize("seed", range(3))
def test_agent_lightnings_formula(seed):
    "Equal to our 'rollout' with dual clip but for rollouts over rows, in value and gradient."
    g = torch.Generator().manual_seed(seed)
    games = games_of(4, False, seed)
    rows = flow_rows([r.samples for r in games], torch.randn(12, generator=g).double())
    old = torch.randn(rows.mask.shape, generator=g).double()
    new = (old + torch.randn(rows.mask.shape, generator=g)).requires_grad_(True)
    theirs = per_rollout_mean(new, old, rows.mask, rows.adv, rows.traj_id)
    ours, metrics = flow_grpo_loss(new, old, None, rows.mask, rows.adv, rows.traj_id, agg="rollout", dual_clip=3.)
    assert metrics["dual_clip_fraction"] > 0
    factor = 12 / len(rows)
    torch.testing.assert_close(theirs, factor * ours)
    torch.testing.assert_close(*(torch.autograd.grad(x, new)[0] * f for x, f in ((theirs, 1), (ours, factor))))


def test_the_configuration_says_what_the_agent_does():
    config = pytest.importorskip("yaml").safe_load(AGENT_LIGHTNING)
    actor, lightning = config["actor_rollout_ref"]["actor"], config["agentlightning"]
    assert config["algorithm"]["enable_rollout_level_advantage"] is True and lightning["trace_aggregator"]["level"] == "transition"
    assert actor["policy_loss"]["loss_mode"] == "per_rollout_mean" and (actor["clip_ratio_low"], actor["clip_ratio_high"]) == (0.2, 0.3) and actor["optim"]["lr"] == 1e-6
    assert config["actor_rollout_ref"]["rollout"]["temperature"] == FlowAgent().temperature
    module, name = lightning["local"]["agent_class"].rsplit(".", 1)
    assert (module, name) == (FlowAgent.__module__, FlowAgent.__name__)


@pytest.mark.parametrize("plans, calls", [(['{"tool": "guess", "args": {}}'], 1), (["nonsense", "more of it", "and more"], 3)])
def test_the_agent_asks_the_gateway_and_posts_one_reward(monkeypatch, plans, calls):
    asked, posted = [], []
    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Authorization"] == "Bearer secret-key"
            if chat := self.path.endswith("/v1/chat/completions"): asked.append(body)
            else: posted.append(body)
            message = {"role": "assistant", "content": plans[len(asked) - 1]} if chat else None
            data = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "auto", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}).encode()
            self.send_response(200); self.send_header("Content-Type", "application/json"); self.send_header("Content-Length", str(len(data))); self.end_headers(); self.wfile.write(data)
        def log_message(self, *_): pass
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    query, url = TextWorld().queries(1, 0)[0], f"http://127.0.0.1:{server.server_port}"
    for name, value in {"AGL_OPENAI_BASE_URL": f"{url}/v1", "AGL_EVENT_URL": f"{url}/event", "AGL_KEY": "secret-key", "LLMWATCH_API_KEY": "", "QUESTION": query.text, "ANSWER": str(query.answer)}.items(): monkeypatch.setenv(name, value)
    try: earned = asyncio.run(FlowAgent().run())
    finally: server.shutdown(); server.server_close()
    assert len(asked) == calls and all(body["temperature"] == 0.7 for body in asked) and posted == [{"event_type": "reward", "data": {"value": earned}}]
    assert earned in (0., 1.) and "secret-key" not in json.dumps(asked)


def test_the_comparison_arm_takes_a_step():
    recipe = Recipe.smoke()
    planner = recipe.planner()
    found = trl_language(recipe, planner, TextWorld(60))
    assert len(found["games"]) == recipe.queries * recipe.group and 0 <= found["flow"]["success"] <= 1
