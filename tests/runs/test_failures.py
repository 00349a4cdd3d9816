"""Every kind of end has a reason, and names its suspects."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import pytest
import torch

from flipscale.data.shards.storage import DataReadError
from flipscale.errors import Reason, RunError, StoppedEarly, UserError
from flipscale.runs.failures import TRANSIENT, Failure, failure_of, slurm_verdict, verdict
from flipscale.runs.heartbeat import Heartbeat, ProcessState


def beat(
    rank: int,
    state: ProcessState = "training",
    kind: Reason | Literal[""] = "",
    message: str = "",
    at: float = 0.0,
) -> Heartbeat:
    return Heartbeat("5.0", rank, 4, f"n{rank}", 1, state, 64, 0.1, at or time.time(), kind, message)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("no such file"), "input"),
        (RunError("full", kind="disk"), "disk"),
        (StoppedEarly("asked to", "preempted", agreed=True), "preempted"),
        (DataReadError("a shard cannot be read"), "data"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out_of_memory",
        ),
        (torch.distributed.DistNetworkError("the client socket has timed out"), "lost_process"),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:5"),
            "lost_process",
        ),
        (RuntimeError("The size of tensor a (3) must match"), "code"),
        (KeyError("restored"), "code"),
    ],
)
def test_every_error_has_a_reason(error: BaseException, kind: str) -> None:
    failure = failure_of(error)
    assert failure.kind == kind
    assert failure.message


GPU_FAULTS = [
    "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: unspecified launch failure",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: GPU is lost",
    "CUDA driver error: unknown error",
    "No CUDA GPUs are available",
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before?",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA "
    "function failed.\nLast error:\nCuda failure 'uncorrectable ECC error encountered'",
]


@pytest.mark.parametrize("words", GPU_FAULTS)
def test_a_gpu_that_failed_is_blamed_and_the_job_starts_again(words: str) -> None:
    kinds = [RuntimeError, getattr(torch, "AcceleratorError", RuntimeError)]
    for kind in kinds:
        failure = failure_of(kind(words), "n7")
        assert (failure.kind, failure.suspects) == ("bad_node", ("n7",))
        assert failure.kind in TRANSIENT
        assert failure.message.startswith("a GPU has failed: ")


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: invalid configuration argument",
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx(...)`",
    ],
)
def test_an_error_of_the_program_on_a_gpu_is_not_tried_again(words: str) -> None:
    assert failure_of(RuntimeError(words), "n7") == Failure("code", f"RuntimeError: {words}")


def test_the_node_of_a_failed_gpu_is_blamed_by_the_peers_that_lost_it() -> None:
    gpu = replace(beat(1, "failed", "bad_node", "a GPU has failed: ECC"), suspects=("n1",))
    own = Failure("lost_process", "another process is gone: gloo")
    assert verdict(own, [beat(0, "failed", "lost_process"), gpu]) == Failure(
        "bad_node", "rank 1 on n1: a GPU has failed: ECC", ("n1",)
    )


def test_no_secret_of_an_address_reaches_the_ledger() -> None:
    error = UserError("https://ada:hunter2@h/0.tar?sig=hunter2 changed since the index was made")
    assert failure_of(error).message == "https://h/0.tar changed since the index was made"


def test_lost_process_is_explained_by_the_peer_that_failed_first() -> None:
    own = Failure("lost_process", "another process is gone")
    beats = [
        beat(0, "failed", "lost_process"),
        beat(1, "failed", "code", "KeyError: 'x'", at=20.0),
        beat(2, "failed", "out_of_memory", "later", at=30.0),
        beat(3),
    ]
    failure = verdict(own, beats)
    assert failure == Failure("code", "rank 1 on n1: KeyError: 'x'")
    assert failure.kind not in TRANSIENT


def test_silent_process_makes_its_node_a_suspect() -> None:
    own = Failure("lost_process", "another process is gone")
    failure = verdict(
        own, [beat(0, "failed", "lost_process"), beat(1), beat(2, "failed", "lost_process"), beat(3)]
    )
    assert failure.kind in TRANSIENT
    assert failure.suspects == ("n1", "n3")
    assert "rank 1, 3 on n1, n3" in failure.message
    assert verdict(Failure("code", "mine"), [beat(0)]) == Failure("code", "mine")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", "node_failure"),
        ("DUE TO PREEMPTION", "preempted"),
        ("DUE TO TIME LIMIT", "timeout"),
        ("DUE TO JOB REQUEUE", None),
    ],
)
def test_reason_is_read_from_slurms_log(tmp_path: Path, words: str, kind: str | None) -> None:
    log = tmp_path / "7_0_log.err"
    log.write_text(
        f"noise\nslurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-25T03:28:07 {words} ***\n"
    )
    assert slurm_verdict(log, datetime(2026, 11, 25, 3, 0)) == kind
    assert slurm_verdict(log, datetime(2026, 11, 25, 4, 0)) is None  # of an earlier start
    assert slurm_verdict(tmp_path / "none", datetime(2026, 11, 25)) is None
