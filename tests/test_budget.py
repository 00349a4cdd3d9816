"""Samples, steps and learning rates: whole numbers that add up, whatever the phases are."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipscale.budget import Budget, check_world_size, crosses_multiple, epochs
from flipscale.config import Phase
from flipscale.errors import UserError

# Rates at six starts of a phase of 960 samples, batch 64, warm-up 100; the first are older than `schedule`.
COSINE = [
    *("0x1.4f8b588e368f1p-13", "0x1.0624dd2f1a9fcp-12", "0x1.05757df6f37ebp-12"),
    *("0x1.3f3c8a7f5a181p-14", "0x1.aa0ea30f181ddp-15", "0x1.c86ded091772bp-19"),
]
COOLED = [
    *("0x1.4f8b588e368f1p-13", "0x1.0624dd2f1a9fcp-12", "0x1.0624dd2f1a9fcp-12"),
    *("0x1.0624dd2f1a9fcp-12", "0x1.bf647612f3697p-13", "0x1.bf647612f3697p-15"),
]


def phase(
    samples: int,
    batch_size: int,
    *,
    base_lr: float = 1e-3,
    warmup: int = 0,
    cooldown: int | None = None,
    name: str = "p",
) -> Phase:
    return Phase(
        name=name,
        samples=samples,
        mask_ratio=0.5,
        batch_size=batch_size,
        base_lr=base_lr,
        warmup=warmup,
        schedule="cosine" if cooldown is None else "constant_cooldown",
        cooldown=cooldown,
    )


@st.composite
def budgets(draw: st.DrawFn) -> tuple[Budget, int]:
    """Draw a budget of 1 to 4 phases of up to 60 steps, and its number of lanes."""
    lanes = draw(st.integers(1, 64))
    phases: list[Phase] = []

    for number in range(draw(st.integers(1, 4))):
        batch = lanes * draw(st.integers(1, 20))
        samples = lanes * draw(st.integers(1, 60 * batch // lanes))
        warmup = draw(st.integers(0, samples - 1))
        cooldown = draw(st.none() | st.integers(1, samples - warmup))
        base_lr = draw(st.floats(1e-9, 1.0))
        phases.append(
            phase(samples, batch, base_lr=base_lr, warmup=warmup, cooldown=cooldown, name=f"p{number}")
        )
    return Budget.of(phases, lanes), lanes


@given(budgets())
def test_steps_spend_exactly_the_budget(made):
    budget, lanes = made
    steps = list(budget.steps_from(0))

    assert [step.start for step in steps] == [0, *(step.stop for step in steps[:-1])]
    assert steps[-1].stop == budget.total == sum(span.phase.samples for span in budget.spans)
    assert len(steps) == budget.steps

    for span in budget.spans:
        own = [step for step in steps if step.phase == span.index]
        assert len(own) == span.steps
        assert (own[0].start, own[-1].stop) == (span.start, span.stop)
        assert all(step.size == span.phase.batch_size for step in own[:-1])

    assert all(step.size > 0 and step.size % lanes == 0 and step.start % lanes == 0 for step in steps)


@given(budgets(), st.data())
def test_boundaries_and_steps_done_agree_with_counting(made, data):
    budget, _ = made
    starts = {step.start: number for number, step in enumerate(budget.steps_from(0))}
    starts[budget.total] = len(starts)

    for samples_seen, done in starts.items():
        assert budget.is_boundary(samples_seen)
        assert budget.steps_done(samples_seen) == done
    inside = data.draw(st.integers(-2, budget.total + 2))

    assert budget.is_boundary(inside) == (inside in starts)
    resumed = data.draw(st.sampled_from(sorted(starts)))

    assert list(budget.steps_from(resumed)) == [s for s in budget.steps_from(0) if s.start >= resumed]
    if inside not in starts:
        with pytest.raises(ValueError, match="no step of this budget starts"):
            next(budget.steps_from(inside))


@given(budgets())
def test_rate_rises_to_its_peak_and_falls(made):
    budget, _ = made
    for span in budget.spans:
        rates = [step.lr for step in budget.steps_from(span.start) if step.phase == span.index]
        sizes = [step.size for step in budget.steps_from(span.start) if step.phase == span.index]
        peak = span.peak_lr
        warmup = span.phase.warmup
        assert peak == pytest.approx(span.phase.base_lr * span.phase.batch_size / 256)
        assert all(0.0 < rate <= peak * (1 + 1e-12) for rate in rates)
        top = rates.index(max(rates))
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)

        # The step that completes the warm-up reaches the peak; the rates before it rise linearly.
        stops = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        assert stops[top] >= warmup
        assert rates[top] == pytest.approx(peak)
        for rate, stop in zip(rates[:top], stops, strict=False):
            assert rate == pytest.approx(peak * stop / warmup)


def test_cosine_ends_near_zero():
    span = Budget.of([phase(64_000, 64, warmup=6400)], 64).spans[0]
    rates = [span.lr_at(start) for start in range(0, 64_000, 64)]
    assert max(rates) == span.peak_lr
    halfway = (6400 + 64_000) // 2
    assert span.lr_at(halfway) == pytest.approx(span.peak_lr / 2)
    # The last step begins one batch before the end: 1/900 of the fall is left.
    assert rates[-1] == pytest.approx(span.peak_lr * (1 - math.cos(math.pi / 900)) / 2)
    assert rates[-1] < 1e-5 * span.peak_lr


@pytest.mark.parametrize(("warmup", "cooldown"), [(0, 1), (0, 60), (1, 59), (7, 20), (13, 47)])
def test_cooldown_is_that_of_openclip(warmup, cooldown):
    """The reference is const_lr_cooldown of open_clip_train/scheduler.py, which counts in steps."""

    def reference(step: int, peak: float) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak if step < 60 - cooldown else peak * (1 - (step - (60 - cooldown)) / cooldown)

    span = Budget.of([phase(60 * 64, 64, warmup=warmup * 64, cooldown=cooldown * 64)], 64).spans[0]
    rates = [span.lr_at(step * 64) for step in range(60)]

    assert rates == pytest.approx([reference(step, span.peak_lr) for step in range(60)], rel=1e-12)
    assert rates[warmup : 61 - cooldown] == [span.peak_lr] * (61 - cooldown - warmup)


def test_rates_are_frozen_to_the_bit():
    cosine = Budget.of([phase(960, 64, warmup=100)], 32).spans[0]
    cooled = Budget.of([phase(960, 64, warmup=100, cooldown=300)], 32).spans[0]
    starts = (0, 64, 128, 640, 704, 896)

    assert [cosine.lr_at(start).hex() for start in starts] == COSINE
    assert [cooled.lr_at(start).hex() for start in starts] == COOLED


def test_budget_of_the_paper():
    """Table 6 of the paper: batch 64k, base rate 4e-6, 51.2M warm-up, here over 12.8B samples."""
    paper = phase(12_800_000_000, 65_536, base_lr=4e-6, warmup=51_200_000)
    budget = Budget.of([paper], 1024)

    assert budget.steps == 195_313
    assert budget.spans[0].peak_lr == pytest.approx(1.024e-3)
    last = budget.step_at(195_312 * 65_536)

    assert (last.size, last.stop) == (32_768, 12_800_000_000)
    assert budget.is_boundary(last.start)
    assert budget.steps_done(last.start) == 195_312
    assert budget.steps_done(budget.total) == 195_313
    # 781.25 steps of warm-up: the 782nd is the first at the peak.
    assert budget.step_at(0).lr == pytest.approx(1.024e-3 * 65_536 / 51_200_000)
    assert budget.step_at(780 * 65_536).lr < 1.024e-3 * (1 - 1e-4)
    assert budget.step_at(781 * 65_536).lr == pytest.approx(1.024e-3)


def test_phases_follow_each_other():
    budget = Budget.of([phase(96, 64, name="a"), phase(64, 32, warmup=32, name="b")], 32)

    assert [(s.phase, s.start, s.size) for s in budget.steps_from(0)] == [
        (0, 0, 64),
        (0, 64, 32),
        (1, 96, 32),
        (1, 128, 32),
    ]
    assert budget.step_at(96).lr == pytest.approx(budget.spans[1].peak_lr)
    assert budget.span_at(95).index == 0
    assert list(budget.steps_from(160)) == []

    for outside in (-1, 160):
        with pytest.raises(ValueError, match="outside the budget of 160 samples"):
            budget.span_at(outside)


@given(st.integers(2, 5000), st.integers(1, 10**12), st.booleans())
def test_refused_count_names_two_that_are_accepted(lanes, value, as_batch):
    def build(count: int) -> Budget:
        return Budget.of([phase(lanes, count) if as_batch else phase(count, lanes)], lanes)

    if value % lanes == 0:
        assert build(value).total
        return
    with pytest.raises(UserError) as refusal:
        build(value)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"phases.0.{'batch_size' if as_batch else 'samples'} (p) is {value}, ")
    nearest = [int(number) for number in re.findall(r"\d+", sentence.partition("the nearest")[2])]
    assert nearest == [count for count in (value // lanes * lanes, value // lanes * lanes + lanes) if count]
    assert [build(count).spans[0].phase for count in nearest]


@given(st.integers(1, 3000), st.integers(1, 5000))
def test_refused_world_size_names_two_that_are_accepted(lanes, world_size):
    if lanes % world_size == 0:
        check_world_size(world_size, lanes)
        return

    with pytest.raises(UserError) as refusal:
        check_world_size(world_size, lanes)
    sentence = str(refusal.value)

    assert f"{world_size} processes cannot share data.lanes = {lanes} evenly" in sentence
    named = [int(n) for n in re.findall(r"\d+", sentence.partition("start ")[2].partition(" processes")[0])]

    assert len(named) == (2 if world_size < lanes else 1)
    assert len(set(named)) == len(named)

    for count in named:
        check_world_size(count, lanes)
        between = range(min(count, world_size) + 1, max(count, world_size))
        assert not [n for n in between if lanes % n == 0]


@given(st.integers(0, 300), st.integers(1, 300), st.integers(1, 100))
def test_crosses_multiple_agrees_with_counting(before, length, every):
    after = before + length
    assert crosses_multiple(before, after, every) == any(n % every == 0 for n in range(before + 1, after + 1))


def test_epochs_are_passes_over_the_data_set():
    assert epochs(12_800_000_000, 400_000_000) == 32.0
