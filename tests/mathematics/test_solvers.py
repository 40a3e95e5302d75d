"""The solvers compute what their authors published: by diffusers on our grids, by loops, by closed forms."""

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from configs import DiffusionConfig
from configs.choices import SAMPLERS as RECORDS
from configs.choices import SPACINGS
from functions import schedules
from functions.samplers import CLEAN, SAMPLERS, clipped, last
from functions.schedules import alpha_bar, alphas_cumprod, betas, grid

BETAS = betas(DiffusionConfig("linear", 1e-4, 0.02, 1000))
A = alphas_cumprod(BETAS).double()
CLEAN_SPACINGS = ("uniform", "quad", "trailing", "linspace")


def model(x, t):
    """A smooth stand-in for a network: float64, nonlinear in x, and of t, fractional too."""
    t = t.double().view(-1, 1, 1, 1) / 1000
    return torch.tanh(x * (0.8 - 0.3 * t)) + 0.1 * torch.sin(3 * x + 2 * t) + 0.2 * t * x


def x_T(seed=0):
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settings(name, **how):
    """What the sampler's record says it takes, by its defaults."""
    record = RECORDS[name]
    values = {"eta": 0.0} if record.takes_eta else {}
    if record.orders:
        values |= {"order": record.orders[0], "lower_order_final": True}
    if record.methods:
        values |= {"method": "multistep", "solver_type": "dpmsolver"}
    return values | {key: value for key, value in how.items() if key in values}


def solve(name, timesteps, end, x=None, network=model, table=A, **how):
    x = x_T() if x is None else x
    steps = SAMPLERS[name](
        network, x, timesteps, table, **settings(name, **how), end=end, randn_like=torch.zeros_like
    )
    return last(steps).x


def rho(labels):
    a = alpha_bar(A, torch.as_tensor(np.asarray(labels, np.float64))).numpy()
    return np.sqrt((1 - a) / a)


def by_diffusers(scheduler, labels, end):
    """A σ-based scheduler of diffusers on our grid: labels descending, the network told ours."""
    S = len(labels)
    scheduler.set_timesteps(S)
    scheduler.sigmas = torch.tensor(rho([*labels, end]), dtype=torch.float64)
    scheduler.timesteps = torch.arange(S, 0, -1)
    scheduler._step_index = scheduler._begin_index = 0
    x = x_T()
    for t, dummy in zip(labels, scheduler.timesteps, strict=True):
        eps = model(x, torch.full((len(x),), t, dtype=torch.float32))
        x = scheduler.step(eps, dummy, x).prev_sample.double()
    return x


def distance(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("S", [5, 8, 12])
@pytest.mark.parametrize("spacing", ["time_uniform", "logSNR", "time_quadratic"])
@pytest.mark.parametrize("name", ["dpmsolver++", "dpmsolver"])
def test_multistep_dpm_solvers_are_diffusers(name, spacing, S):
    """To float32's rounding, for theirs computes in float32."""
    timesteps, end = grid(spacing, S, A)
    for order in (1, 2, 3):
        for ours, theirs in (("dpmsolver", "midpoint"), ("taylor", "heun")):
            scheduler = diffusers.DPMSolverMultistepScheduler(
                trained_betas=BETAS, solver_order=order, algorithm_type=name, solver_type=theirs,
                lower_order_final=True, final_sigmas_type="sigma_min",
            )  # fmt: skip
            found = solve(name, timesteps, end, order=order, solver_type=ours)
            assert distance(found, by_diffusers(scheduler, timesteps[::-1], end)) < 2e-6, (order, ours)


@pytest.mark.parametrize("spacing", CLEAN_SPACINGS)
def test_dpm_solvers_that_end_clean_are_diffusers(spacing):
    timesteps, end = grid(spacing, 10, A)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=BETAS, solver_order=2, lower_order_final=True, final_sigmas_type="zero"
    )
    assert end == CLEAN
    assert (
        distance(solve("dpmsolver++", timesteps, end, order=2), by_diffusers(scheduler, timesteps[::-1], end))
        < 2e-6
    )


def test_the_full_order_to_the_end_is_theirs_without_lower_order_final():
    timesteps, end = grid("logSNR", 8, A)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=BETAS, solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min"
    )
    found = solve("dpmsolver++", timesteps, end, order=3, lower_order_final=False)
    assert distance(found, by_diffusers(scheduler, timesteps[::-1], end)) < 2e-6
    assert distance(solve("dpmsolver++", timesteps, end, order=3), found) > 1e-4


@pytest.mark.parametrize("order, solver_type, theirs", [(2, "dpmsolver", "midpoint"), (3, "taylor", "heun")])
def test_singlestep_dpm_solvers_are_diffusers(order, solver_type, theirs):
    """Where S is a multiple of the order, and one more."""
    for name in ("dpmsolver++", "dpmsolver"):
        for S in (6, 7) if order == 2 else (7, 10):
            timesteps, end = grid("time_uniform", S, A)
            scheduler = diffusers.DPMSolverSinglestepScheduler(
                trained_betas=BETAS, solver_order=order, algorithm_type=name, solver_type=theirs,
                lower_order_final=False, final_sigmas_type="sigma_min",
            )  # fmt: skip
            orders = [k + 1 for p in schedules.singlestep_orders(S, order) for k in range(p)]
            scheduler.get_order_list = lambda n, orders=orders: orders
            found = solve(name, timesteps, end, order=order, method="singlestep", solver_type=solver_type)
            assert distance(found, by_diffusers(scheduler, timesteps[::-1], end)) < 1e-12


def test_dpm_solver_3_is_its_authors_formula():
    """3S by ε, for which diffusers has another formula: a step of arXiv 2206.00927, algorithm 2."""
    labels = [800.0, 600.0, 430.0, 200.0]
    (s, s1, s2, t) = ((math.sqrt(a), math.sqrt(1 - a)) for a in (float(alpha_bar(A, u)) for u in labels))
    lam = [math.log(a / b) for a, b in (s, s1, s2, t)]
    h = lam[3] - lam[0]
    r1, r2 = (lam[1] - lam[0]) / h, (lam[2] - lam[0]) / h
    x = x_T()
    e0, e = model(x, torch.tensor([800.0] * 2)), math.exp
    u1 = s1[0] / s[0] * x - s1[1] * (e(r1 * h) - 1) * e0
    D1 = model(u1, torch.tensor([600.0] * 2)) - e0
    u2 = s2[0] / s[0] * x - s2[1] * (e(r2 * h) - 1) * e0
    u2 = u2 - s2[1] * r2 / r1 * ((e(r2 * h) - 1) / (r2 * h) - 1) * D1
    D2 = model(u2, torch.tensor([430.0] * 2)) - e0
    expected = t[0] / s[0] * x - t[1] * (e(h) - 1) * e0 - t[1] / r2 * ((e(h) - 1) / h - 1) * D2
    steps = SAMPLERS["dpmsolver"](
        model, x, labels[2::-1], A, order=3, method="singlestep", solver_type="dpmsolver", end=200.0,
        lower_order_final=True, randn_like=None,
    )  # fmt: skip
    # Three evaluations are a step of order 2 and one of order 1, so ask for the three alone.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("functions.samplers.dpm_solver.singlestep_orders", lambda S, order, ends_clean: [3])
        assert distance(last(steps).x, expected) < 1e-12


@pytest.mark.parametrize("spacing", ["time_uniform", "logSNR"])
def test_unipc_is_diffusers(spacing):
    for S in (5, 10):
        timesteps, end = grid(spacing, S, A)
        for order in (1, 2, 3):
            for name, theirs in (("unipc", "bh1"), ("unipc_bh2", "bh2")):
                scheduler = diffusers.UniPCMultistepScheduler(
                    trained_betas=BETAS, solver_order=order, solver_type=theirs, lower_order_final=True,
                    final_sigmas_type="sigma_min",
                )  # fmt: skip
                found = solve(name, timesteps, end, order=order)
                assert distance(found, by_diffusers(scheduler, timesteps[::-1], end)) < 1e-12, (order, name)


@pytest.mark.parametrize("S", [10, 20, 50])
def test_pndm_and_plms_are_diffusers(S):
    """Where half of a step is whole, as theirs takes whole timesteps."""
    for name, skip in (("pndm", False), ("plms", True)):
        scheduler = diffusers.PNDMScheduler(
            skip_prk_steps=skip,
            set_alpha_to_one=True,
            steps_offset=0,
            timestep_spacing="leading",
            trained_betas=BETAS,
        )
        scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = (
            A[1:],
            torch.tensor(1.0, dtype=torch.float64),
        )
        scheduler.set_timesteps(S)
        x, evaluations = x_T(), 0
        for t in scheduler.timesteps:
            x, evaluations = scheduler.step(model(x, t.expand(len(x))), t, x).prev_sample, evaluations + 1
        counted = []

        def counting(x, t, counted=counted):
            counted.append(t)
            return model(x, t)

        found = solve(name, *grid("uniform", S, A), network=counting)
        assert distance(found, x) < 1e-12
        # theirs repeats a timestep's evaluation where ours needs none
        assert len(counted) == RECORDS[name].evaluations(S) <= evaluations


def test_deis_integrates_the_polynomial():
    """By another quadrature: Gauss's, of L_j times dρ/dt by differences, in each of the schedule's pieces."""
    timesteps, end = grid("linspace", 6, A)[0][1:], 0
    labels, nodes, weights = [*timesteps[::-1], end], *np.polynomial.legendre.leggauss(4)
    x, known, d = x_T(), [], 1e-4
    for i, (t, t_next) in enumerate(pairwise(labels)):
        known.insert(0, (t, model(x, torch.full((2,), t))))
        p = min(3, len(known), len(labels) - 1 - i)
        v = x / math.sqrt(alpha_bar(A, t))
        u = (np.arange(t_next, t)[:, None] + (nodes + 1) / 2).ravel()
        slope = (rho(u + d) - rho(u - d)) / (2 * d)
        for own, eps in known[:p]:
            L = np.prod([(u - other) / (own - other) for other, _ in known[:p] if other != own], axis=0)
            v = v - (L * slope * np.tile(weights / 2, t - t_next)).sum() * eps
        x = math.sqrt(alpha_bar(A, t_next)) * v
    assert distance(solve("deis", timesteps, end, order=3), x) < 1e-5


def test_gradient_estimation_heun_and_euler_are_their_formulas():
    timesteps, end = grid("uniform", 10, A)
    labels, table = [*timesteps[::-1], end], [float(alpha_bar(A, t)) for t in (*timesteps[::-1], end)]
    g = h = e = x_T()
    before = None
    for (t, t_next), (a, b) in zip(pairwise(labels), pairwise(table), strict=True):
        r, r_next = math.sqrt((1 - a) / a), math.sqrt((1 - b) / b)
        at, at_next = (torch.full((2,), t), torch.full((2,), t_next))
        eps = model(g, at)
        bar = eps if before is None else 2 * eps - before
        g, before = math.sqrt(b) * (g / math.sqrt(a) + (r_next - r) * bar), eps
        eps = model(h, at)
        v = h / math.sqrt(a) + (r_next - r) * eps
        if t_next >= 0:
            v = h / math.sqrt(a) + (r_next - r) * (eps + model(math.sqrt(b) * v, at_next)) / 2
        h = math.sqrt(b) * v
        v = e / math.sqrt(a) + ((1 - b) / b - (1 - a) / a) / 2 * math.sqrt(a / (1 - a)) * model(e, at)
        e = math.sqrt(b) * v
    for name, expected in (("gradient", g), ("heun", h), ("euler", e)):
        assert distance(solve(name, timesteps, end), expected) < 1e-10, name


@pytest.mark.parametrize("spacing", SPACINGS)
def test_order_one_is_ddim(spacing):
    """In float32, as it is sampled, on every spacing. UniPC-1 is not among them: it has a corrector."""
    table, (timesteps, end) = A.float(), grid(spacing, 10, A.float())

    def network(x, t):
        return model(x, t).float()

    expected = solve("generalized", timesteps, end, x_T().float(), network, table)
    for name in ("dpmsolver++", "dpmsolver", "deis"):
        for method in ("multistep", "singlestep"):
            found = solve(name, timesteps, end, x_T().float(), network, table, order=1, method=method)
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


# What a solver's error falls with, as a power of the number of steps: 3M as published is of second order.
RATES = {
    ("generalized", 1): 1, ("dpmsolver++", 1): 1, ("dpmsolver++", 2): 2, ("dpmsolver++", 3): 2,
    ("dpmsolver", 2): 2, ("dpmsolver", 3): 2, ("dpmsolver++ singlestep", 2): 2,
    ("dpmsolver singlestep", 2): 2, ("unipc", 1): 2, ("unipc", 2): 3, ("unipc", 3): 3, ("unipc_bh2", 2): 3,
    ("unipc_bh2", 3): 3,
    ("deis", 2): 2, ("deis", 3): 3, ("deis", 4): 4, ("pndm", 0): 2, ("plms", 0): 2, ("gradient", 0): 1,
    ("euler", 0): 1, ("heun", 0): 2,
}  # fmt: skip


def network_of_gaussian_data(x, t):
    """The exact ε of data that are N(0, ½²)."""
    a = alpha_bar(A, t).view(-1, 1, 1, 1)
    return (1 - a).sqrt() * x / (a / 4 + 1 - a)


def error_for_gaussian_data(name, order, S):
    """To the solution of the ODE, which scales x with the standard deviation of x_t."""
    name, _, method = name.partition(" ")
    timesteps, end = grid("logSNR", S, A, singlestep=order if method else 0)
    found = solve(
        name, timesteps, end, network=network_of_gaussian_data, order=order, method=method or "multistep"
    )
    a = alpha_bar(A, torch.tensor([999, 0]))
    begin, finish = (a / 4 + 1 - a).sqrt()
    return distance(found, x_T() * finish / begin)


@pytest.mark.parametrize("name, order", RATES)
def test_for_gaussian_data_a_solver_converges_at_its_order(name, order):
    errors = [error_for_gaussian_data(name, order, S) for S in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(RATES[name, order], abs=0.35)
    assert errors[1] < 0.2


@pytest.mark.parametrize("name", ["dpmsolver++", "dpmsolver"])
def test_singlestep_of_third_order_converges_fast(name):
    """At least by its order: the next term is not small yet where rounding of the labels begins."""
    coarse, fine = (error_for_gaussian_data(f"{name} singlestep", 3, S) for S in (21, 42))
    assert coarse / fine > 2**2.8 and fine < 1e-3


@pytest.mark.parametrize(
    "name, theirs",
    [("on", {"clip_sample": True}), ("dynamic", {"thresholding": True, "sample_max_value": 1e9})],
)
def test_clipped_x0_is_diffusers(name, theirs):
    """Their DDIM, with the model's output made to fit the clipped x0."""
    timesteps, end = grid("uniform", 20, A.float())
    scheduler = diffusers.DDIMScheduler(
        trained_betas=BETAS, set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading",
        **{"clip_sample": False} | theirs,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    x = x_T().float()
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(2)).float(), t, x, use_clipped_model_output=True).prev_sample
    network = clipped(lambda x, t: model(x, t).float(), A.float(), name, low=-1)
    found = solve("generalized", timesteps, end, x_T().float(), network, A.float())
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    assert distance(found, solve("generalized", timesteps, end)) > 0.1


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddpm_noisy"])
def test_every_sampler_predicts_in_the_range_when_x0_is_clipped(name):
    """Of data in [-1, 1] and in [0, 1], on a grid with timesteps between the whole ones."""
    timesteps, end = grid("logSNR", 10, A)
    for low in (-1, 0):
        network = clipped(model, A, "on", low=low)
        how = dict(settings(name), end=end, randn_like=torch.zeros_like)
        predicted = torch.stack([step.x0 for step in SAMPLERS[name](network, x_T(), timesteps, A, **how)])
        assert low - 1e-6 < predicted.min() < low + 1e-6 and 1 - 1e-6 < predicted.max() < 1 + 1e-6
    assert max(step.x0.abs().max() for step in SAMPLERS[name](model, x_T(), timesteps, A, **how)) > 2


def test_ddpm_noisy_clips_unless_it_is_told_not_to():
    timesteps, end = grid("uniform", 20, A)
    how = dict(end=end, randn_like=torch.zeros_like)
    clips, not_ = (
        last(SAMPLERS["ddpm_noisy"](model, x_T(), timesteps, A, clip_x0=clip_x0, **how)).x
        for clip_x0 in ("on", "off")
    )
    assert clips.abs().max() <= 1 < not_.abs().max()


def test_the_spacings_are_those_of_diffusers_and_of_dpm_solver():
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    for S in (7, 10, 30):
        scheduler.set_timesteps(S)
        assert grid("trailing", S, A) == (scheduler.timesteps.tolist()[::-1], CLEAN)
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(30)
    assert grid("linspace", 30, A) == (scheduler.timesteps.tolist()[::-1], CLEAN)
    for S in (5, 20):
        for name, of in (
            ("time_uniform", lambda t: t), ("time_quadratic", lambda t: math.sqrt((t + 1) / 1000)),
            ("logSNR", lambda t: math.log(rho([t])[0])),
        ):  # fmt: skip
            timesteps, end = grid(name, S, A)
            steps = np.diff([of(t) for t in (end, *timesteps)])
            assert (len(timesteps), timesteps[-1], end) == (S, 999, 0)
            np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
            assert grid(name, S, A, denoise=True) == ([0, *grid(name, S - 1, A)[0]], CLEAN)


def test_singlestep_in_logsnr_has_steps_of_equal_length():
    """Two steps of three evaluations, one of two, one of one: K + 1 equal steps, parted equally."""
    timesteps, end = grid("logSNR", 9, A, singlestep=3)
    lam = -np.log(rho([*timesteps[::-1], end]))
    np.testing.assert_allclose(np.diff(lam) * 4 / (lam[-1] - lam[0]), 6 * [1 / 3] + 2 * [1 / 2] + [1])


def test_between_two_timesteps_log_alpha_bar_is_linear():
    t = torch.tensor([-1.0, 0.0, 41.25, 999.0])
    expected = [1, A[1], A[42] ** 0.75 * A[43] ** 0.25, A[1000]]
    torch.testing.assert_close(alpha_bar(A, t), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(alpha_bar(A, torch.arange(-1, 1000)), A)
