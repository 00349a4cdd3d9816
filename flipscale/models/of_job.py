"""The shape of a job's model in each of its phases, and thus in each checkpoint of its run."""

from __future__ import annotations

from typing import Protocol

from flipscale.budget import Budget
from flipscale.config import Job, Phase
from flipscale.errors import UserError
from flipscale.models.presets import ModelSpec, preset, resized


class TokenizerSize(Protocol):
    """The properties of a tokenizer that the shape of a model depends on."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        ...

    @property
    def context_length(self) -> int:
        """The number of tokens per text, padding included."""
        ...


def model_spec(job: Job, tokenizer: TokenizerSize) -> ModelSpec:
    """Return the shape of a job's model, with the vocabulary and context length of its tokenizer.

    Args:
        job: The job.
        tokenizer: The tokenizer of the job.

    Raises:
        UserError: If the preset does not exist, a size does not fit, or the tokenizer is of another kind.
    """
    spec = preset_spec(job, tokenizer.vocab_size, tokenizer.context_length)
    _check_tokenizer_fits(spec, job)
    return spec


def preset_spec(job: Job, vocab_size: int | None = None, context_length: int | None = None) -> ModelSpec:
    """Return the shape of a job's model without reading its tokenizer.

    Args:
        job: The job.
        vocab_size: The number of token ids; default: that of the preset.
        context_length: The number of tokens per text; default: that of the preset.

    Raises:
        UserError: If the preset does not exist, or a size does not fit.
    """
    return preset(
        job.model.preset,
        image_size=job.model.image_size,
        patch_size=job.model.patch_size,
        vocab_size=vocab_size,
        context_length=context_length,
        logit_bias=job.loss.kind == "sigmoid",
        decoder=job.loss.decoder,
    )


def phase_specs(spec: ModelSpec, job: Job) -> tuple[ModelSpec, ...]:
    """Return the shape of the model in every phase of a job, in order.

    Args:
        spec: The shape of the job's model, which a phase has unless it names other sizes.
        job: The job.

    Raises:
        UserError: If the image size of a phase is not a multiple of its patch size; names the phase.
    """
    return tuple(_phase_spec(spec, number, phase) for number, phase in enumerate(job.phases))


def checkpoint_spec(spec: ModelSpec, job: Job, samples_seen: int) -> ModelSpec:
    """Return the shape of the model in a checkpoint: that of the phase in which its last sample was seen.

    The checkpoint at the end of a phase thus has the shape of this phase, though the next phase begins there.

    Args:
        spec: The shape of the job's model.
        job: The job.
        samples_seen: Samples seen at the checkpoint.
    """
    span = Budget.of(job.phases, job.data.lanes).span_at(max(0, samples_seen - 1))
    return phase_specs(spec, job)[span.index]


def _phase_spec(spec: ModelSpec, number: int, phase: Phase) -> ModelSpec:
    try:
        return resized(spec, phase.image_size, phase.patch_size)
    except UserError as error:
        raise UserError(f"phases.{number} ({phase.name}): {error}") from None


def _check_tokenizer_fits(spec: ModelSpec, job: Job) -> None:
    kind = "wordpiece" if spec.text.pool == "first" else "clip_bpe"
    if job.data.tokenizer.kind != kind:
        raise UserError(
            f"model.preset {job.model.preset} pools its text for a {kind} tokenizer; "
            f"set data.tokenizer.kind to {kind} (it is {job.data.tokenizer.kind})"
        )
