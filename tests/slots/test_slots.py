"""θ̂ as a visiting value against θ̂ as a whole second model, and the invariants that Algorithm 2 gives for free."""

from __future__ import annotations

import pytest
import torch

from tests.models import save_tiny


def samples_of(seed: int, sft: int = 3, rl: int = 5):
    from bridge_mcore.data.sample import RL, SFT, Sample

    g = torch.Generator().manual_seed(seed)

    def draw(component):
        n, prompt = int(torch.randint(5, 25, (), generator=g)), int(torch.randint(1, 4, (), generator=g))
        tokens = torch.randint(0, 120, (n,), generator=g).tolist()
        if component == SFT:
            return Sample(SFT, tokens, prompt)
        behaviour = (-4 + torch.randn(n - prompt, generator=g)).tolist()
        return Sample(RL, tokens, prompt, float(torch.randn((), generator=g)), behaviour)

    return [draw(SFT) for _ in range(sft)] + [draw(RL) for _ in range(rl)]


def make(world, source, *, lam=0.5, rows=None, dtype="float32", optimizer="adamw", auxiliary=True, **more):
    from bridge_mcore.config.schema import Config
    from bridge_mcore.training.passes import PassRunner
    from bridge_mcore.training.policy import build_policy
    from bridge_mcore.training.step import Updater

    config = Config.model_validate(
        {
            "model": {"dtype": dtype},
            "method": {"lam": lam},
            "objective": {"kl_coefficient": 0.0},
            "optimizer": {"name": optimizer, "alpha": 1e-3, "beta": 2e-3, "weight_decay": 0.1, "gradient_clip": None},
            "auxiliary": more,
        }
    )
    policy = build_policy(config, world[0], source, adapter=True, auxiliary=auxiliary, reference=False)
    with torch.no_grad():
        for name, p in policy.chunks[0].named_parameters():
            if ".lora.B." in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    policy.optimizer.set_rates(1e-3, 2e-3)
    for part in policy.optimizer.parts:  # bf16 masters were copied before B was set
        part.reload_model_params()
    runner = PassRunner(policy, config.objective, 200, rows)
    return config, policy, runner, Updater(policy, runner, config.auxiliary)


def passes_of(config):
    from bridge_mcore.methods.bridge import Bridge

    return Bridge(config).passes(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_slot_equals_a_whole_second_model_bit_for_bit(world, tmp_path, seed, dtype, optimizer):
    """Four iterations; the naive version has two models with an optimizer each and adds w's gradients by hand."""
    from bridge_mcore.data.sample import RL, SFT

    save_tiny("qwen2_untied", tmp_path, seed=seed % 1000)
    config, policy, _, updater = make(world, tmp_path, dtype=dtype, optimizer=optimizer)
    _, one, runner_one, _ = make(world, tmp_path, dtype=dtype, optimizer=optimizer, auxiliary=False)
    _, two, runner_two, _ = make(world, tmp_path, dtype=dtype, optimizer=optimizer, auxiliary=False)
    for k in range(4):
        batch = samples_of(seed + k)
        updater.update(passes_of(config), batch, 1e-3, 2e-3)
        two.optimizer.release_gradients()
        runner_two.run([s for s in batch if s.component == RL], {RL: 1.0})
        two.optimizer.gather_gradients()
        gain = [-0.5 * m.value.grad for m in two.optimizer.pairs["adapter"]]
        two.optimizer.step("base")
        one.optimizer.release_gradients()
        runner_one.run(batch, {SFT: 0.5, RL: 0.5})
        one.optimizer.gather_gradients()
        torch._foreach_add_([m.value.grad for m in one.optimizer.pairs["adapter"]], gain)
        one.optimizer.step("base")
        one.optimizer.step("adapter")
        one.optimizer.publish()
        with torch.no_grad():
            for a, b in zip(two.optimizer.pairs["adapter"], one.optimizer.pairs["adapter"], strict=True):
                a.value.copy_(b.value)
        two.optimizer.publish()
    assert all(torch.equal(policy.masters()[n], v) for n, v in one.masters().items())
    assert all(torch.equal(policy.masters("theta_hat")[n], v) for n, v in two.masters().items())
    assert all(torch.equal(policy.adapter_masters()[n], v) for n, v in one.adapter_masters().items())
    assert not all(torch.equal(policy.masters()[n], v) for n, v in policy.masters("theta_hat").items())


def test_a_slot_costs_its_values_and_moments_and_nothing_else(world, tmp_path):
    """12 bytes a parameter with AdamW (fp32 value and two moments), 4 with plain gradient steps."""
    save_tiny("qwen2", tmp_path)
    for choice, bytes_each in (("same", 12), ("sgd", 4)):
        config, policy, _, updater = make(world, tmp_path, optimizer="adamw")
        config.auxiliary.optimizer = choice
        policy.slots["theta_hat"].moments = choice == "same"
        updater.auxiliary = config.auxiliary
        updater.update(passes_of(config), samples_of(1), 1e-3, 2e-3)
        slot = policy.slots["theta_hat"]
        numel = sum(v.numel() for v in slot.values)
        steps = sum(s["step"].nbytes for s in slot.states if "step" in s)  # torch's 4-byte counter per tensor
        assert slot.nbytes() == bytes_each * numel + steps


def test_lam_1_keeps_theta_hat_at_theta_and_gives_w_nothing(world, tmp_path, seed):
    save_tiny("llama", tmp_path, seed=seed % 1000)
    config, policy, _, updater = make(world, tmp_path, lam=1.0)
    for k in range(3):
        batch = [s for s in samples_of(seed + k) if s.component == "rl"]
        metrics = updater.update(passes_of(config), batch, 1e-3, 2e-3)
        assert metrics["grad_norm_w"] < 1e-5 * metrics["grad_norm_theta"]
        assert abs(metrics["gain"]) < 1e-6
    for name, value in policy.masters("theta_hat").items():
        assert (value - policy.masters()[name]).abs().max() <= 1e-6, name


def test_lam_0_is_sft_of_theta_and_w(world, tmp_path, seed):
    """With plain gradient steps: Adam's first ones divide by the gradient, so rounding decides where it is small."""
    from bridge_mcore.methods.base import Pass

    save_tiny("llama", tmp_path, seed=seed % 1000)
    config, policy, _, updater = make(world, tmp_path, lam=0.0, optimizer="sgd")
    _, plain, _, sft = make(world, tmp_path, auxiliary=False, optimizer="sgd")
    both = Pass("theta", {"sft": 1.0}, into={"theta": 1.0, "w": 1.0}, update=("theta", "w"))
    before = {n: v.detach().clone() for n, v in {**plain.masters(), **plain.adapter_masters()}.items()}
    for k in range(2):
        batch = samples_of(seed + k)
        updater.update(passes_of(config), batch, 1e-2, 2e-2)
        sft.update([both], [s for s in batch if s.component == "sft"], 1e-2, 2e-2)
    got = {**policy.masters(), **policy.adapter_masters()}
    for name, value in {**plain.masters(), **plain.adapter_masters()}.items():
        step = (value - before[name]).abs().max()
        assert step > 0 and (value - got[name]).abs().max() < 1e-6 + 1e-4 * step, name


def test_lookahead_is_one_rl_step_ahead_of_theta(world, tmp_path, seed):
    """Eq. (10) with plain gradient steps: θ̂ = θ + α ∇J_RL(θ, w), taken anew from each iteration's θ."""
    from bridge_mcore.data.sample import RL

    save_tiny("qwen3", tmp_path, seed=seed % 1000)
    config, policy, runner, updater = make(world, tmp_path, optimizer="sgd", mode="lookahead")
    updater.update(passes_of(config), samples_of(seed), 1e-2, 1e-2)
    theta = {n: v.clone() for n, v in policy.masters().items()}
    batch = samples_of(seed + 1)
    policy.optimizer.release_gradients()
    runner.run([s for s in batch if s.component == RL], {RL: 1.0})
    policy.optimizer.gather_gradients()
    step = {n: -m.grad.clone() for n, m in policy.masters().items()}
    updater.update(passes_of(config), batch, 1e-2, 1e-2)
    for name, value in policy.masters("theta_hat").items():
        decay = 0.1 if value.dim() > 1 else 0.0  # norms and biases do not decay
        want = theta[name].detach() + 1e-2 * (step[name] - decay * theta[name].detach())
        assert torch.allclose(value, want, atol=1e-6), name


def test_the_update_does_not_depend_on_the_micro_batch_size(world, tmp_path, seed):
    save_tiny("qwen2", tmp_path, seed=seed % 1000)
    batch, results = samples_of(seed), []
    for rows in (1, 3, None):
        config, policy, _, updater = make(world, tmp_path, rows=rows, optimizer="sgd")
        metrics = updater.update(passes_of(config), batch, 1e-2, 1e-2)
        results.append((metrics, policy.masters(), policy.adapter_masters()))
    for metrics, theta, w in results[1:]:
        for name in ("j_sft", "j_rl", "j_rl_auxiliary", "grad_norm_theta", "grad_norm_w", "clip_fraction"):
            assert metrics[name] == pytest.approx(results[0][0][name], rel=1e-5, abs=1e-7), name
        assert all((v - results[0][1][n]).abs().max() < 1e-6 for n, v in theta.items())
        assert all((v - results[0][2][n]).abs().max() < 1e-6 for n, v in w.items())


def test_a_component_without_tokens_stops_the_step(world, tmp_path):
    from bridge_mcore.errors import TrainingError

    save_tiny("qwen2", tmp_path)
    config, _, _, updater = make(world, tmp_path)
    with pytest.raises(TrainingError, match="'sft'"):
        updater.update(passes_of(config), [s for s in samples_of(1) if s.component == "rl"], 1e-3, 1e-3)


def test_a_gap_between_engine_and_trainer_stops_the_step_before_theta_moves(world, tmp_path):
    from bridge_mcore.errors import TrainingError

    save_tiny("qwen2", tmp_path)
    config, policy, _, updater = make(world, tmp_path)
    updater.max_logprob_gap = 0.1
    before = {n: v.clone() for n, v in policy.masters().items()}
    with pytest.raises(TrainingError, match="max_logprob_gap"):
        updater.update(passes_of(config), samples_of(1), 1e-3, 1e-3)
    assert all(torch.equal(before[n], v) for n, v in policy.masters().items())


def test_an_improbable_trace_token_does_not_poison_the_rollouts(world, tmp_path, seed):
    """exp(0 - logp) of a trace token overflows fp32 below logp = -88; J_RL and its KL must not see it."""
    from bridge_mcore.config.schema import Objective
    from bridge_mcore.data.sample import RL

    hf = save_tiny("qwen2_untied", tmp_path, seed=seed % 1000)
    with torch.no_grad():
        hf.lm_head.weight.mul_(60)
    hf.save_pretrained(tmp_path)
    _, policy, runner, _ = make(world, tmp_path, auxiliary=False)
    runner.objective = Objective(kl_coefficient=0.01)
    batch = samples_of(seed, sft=8)
    for s in batch:
        if s.component == RL:  # on-policy, so that its own ratios are tame
            policy.optimizer.release_gradients()
            runner.fill_reference([s])
            s.behaviour = s.reference.tolist()
    policy.optimizer.release_gradients()
    computed = runner.run(batch, {"sft": 0.5, "rl": 0.5})
    assert computed["j_sft"] < -30
    assert computed["kl"] == pytest.approx(0.0, abs=1e-6)
    assert computed["j_rl"] == computed["j_rl"], "NaN"
    policy.optimizer.gather_gradients()
    policy.optimizer.check_finite("base")
    policy.optimizer.check_finite("adapter")
    policy.optimizer.release_gradients()


def test_norms_of_large_tensors_are_right(world, tmp_path):
    """Torch's own norm of 2**25 equal numbers is off by several 1e-4 on a CPU: it adds them one by one."""
    from bridge_mcore.slots.optimizer import Master, _squares

    value = torch.full((2**25 + 3,), 0.1)
    [(part, squares)] = _squares([Master(value, torch.nn.Parameter(torch.zeros(1)), None, 0)], [value])
    assert part == 0
    assert float(squares) == pytest.approx(value.numel() * float(torch.tensor(0.1)) ** 2, rel=1e-6)
