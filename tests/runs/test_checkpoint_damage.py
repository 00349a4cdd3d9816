"""Whatever happens to the files of a checkpoint, it is loaded exactly or refused."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.saved_checkpoints import is_exact, save

from flipscale.runs import checkpoint
from flipscale.runs.manifest import directory_name

Damage = Callable[[Path, random.Random], None]


def files(path: Path) -> list[Path]:
    regular = (file for file in path.iterdir() if file.is_file() and not file.is_symlink())
    return sorted(file for file in regular if file.stat().st_size)


def a_file(path: Path, rng: random.Random) -> Path:
    return rng.choice(files(path))


def overwrite(file: Path, place: int, data: bytes) -> None:
    whole = bytearray(file.read_bytes())
    whole[place : place + len(data)] = data
    file.write_bytes(bytes(whole))


def flip_a_bit(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    place = rng.randrange(file.stat().st_size)
    overwrite(file, place, bytes([file.read_bytes()[place] ^ 1 << rng.randrange(8)]))


def write_noise(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    overwrite(file, rng.randrange(file.stat().st_size), rng.randbytes(rng.randrange(1, 600)))


def write_zeros(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    overwrite(file, rng.randrange(file.stat().st_size), bytes(rng.randrange(1, 4096)))


def cut(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    os.truncate(file, rng.randrange(file.stat().st_size))


def extend(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    file.write_bytes(file.read_bytes() + rng.choice([b"\0", b"\n", b" ", rng.randbytes(300)]))


def move_a_block(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    data = file.read_bytes()
    start, stop, to = (rng.randrange(len(data)) for _ in range(3))
    overwrite(file, to, data[min(start, stop) : max(start, stop)])


def change_a_digit(path: Path, rng: random.Random) -> None:
    file = path / "manifest.json"
    data = file.read_bytes() if file in files(path) else b""
    digits = [place for place, byte in enumerate(data) if chr(byte) in "0123456789abcdef"]
    if digits:
        overwrite(file, rng.choice(digits), rng.choice("0123456789abcdef").encode())


def delete(path: Path, rng: random.Random) -> None:
    a_file(path, rng).unlink()


def rename(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    file.rename(path / rng.choice(["a.safetensors", "manifest.json", "shard-00002.safetensors", ".hidden"]))


def copy(path: Path, rng: random.Random) -> None:
    data = a_file(path, rng).read_bytes()
    (path / rng.choice(["a.safetensors", "zz.safetensors", "b.json", "c"])).write_bytes(data)


def take_from_the_other(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    other = path.parent / directory_name(8) / file.name
    file.write_bytes(other.read_bytes() if other.exists() else b"")


def take_all_from_the_other(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.parent / directory_name(8), path)


def replace_by_another_kind(path: Path, rng: random.Random) -> None:
    file = a_file(path, rng)
    file.unlink()
    make: list[Callable[[Path], object]] = [
        Path.mkdir,
        os.mkfifo,
        lambda place: place.symlink_to("nothing"),
        lambda place: place.symlink_to(place.name),
        lambda place: place.symlink_to("/dev/zero"),
        lambda place: place.symlink_to(path.parent / directory_name(8) / place.name),
    ]
    rng.choice(make)(file)


DAMAGES: list[Damage] = [
    flip_a_bit,
    write_noise,
    write_zeros,
    cut,
    extend,
    move_a_block,
    change_a_digit,
    delete,
    rename,
    copy,
    take_from_the_other,
    take_all_from_the_other,
    replace_by_another_kind,
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    save(root, 8, 16)
    return root


def outcomes(saved: Path, root: Path, damages: int, seed: int) -> Counter[str]:
    """Damage the newer of two checkpoints `damages` times, each time another copy, and read it."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for number in range(damages):
        shutil.copytree(saved, root)
        damage = DAMAGES[number % len(DAMAGES)]
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            if files(root / directory_name(16)):
                damage(root / directory_name(16), rng)

        newest = checkpoint.find(root)
        assert newest is not None, (number, damage)
        assert is_exact(newest), (number, damage)
        counts["exact" if newest.progress.samples_seen == 16 else "refused"] += 1
        shutil.rmtree(root)
    return counts


def test_damaged_checkpoint_is_exact_or_refused(saved: Path, tmp_path: Path):
    counts = outcomes(saved, tmp_path / "root", 5 * len(DAMAGES), seed=1)
    assert counts["refused"] > 4 * len(DAMAGES)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_thousands_of_damaged_checkpoints_are_exact_or_refused(saved: Path, tmp_path: Path):
    counts = outcomes(saved, tmp_path / "root", 200 * len(DAMAGES), seed=2)
    assert counts.total() == 2600
    assert counts["refused"] > 160 * len(DAMAGES)
