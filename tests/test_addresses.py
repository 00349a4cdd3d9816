"""Secrets in addresses: which are noticed, what identifies a shard without them, and what messages show."""

from __future__ import annotations

from pathlib import Path

import pytest

from flipscale.addresses import find_secret, resolve, without_secrets, without_signature
from flipscale.errors import UserError

HARMLESS = [
    "/data/{0..9}.tar",
    "/data/a?sig=12.tar",
    "s3://bucket/{0..9}.tar",
    "https://h/0.tar?${SIG}",
    "https://h/0.tar?sig=${SIG}&part=3",
    "https://h/get?id=17&file=a.tar",
    "https://${USER}:${PASSWORD}@h/0.tar",
    "https://ada:${PASSWORD}@h/0.tar",
    "abfs://container@account.dfs.core.windows.net/0.tar",
    "sftp://ada@h/0.tar",
    "https://h/0.tar?versionId=3HL4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY",
    "https://h/0.tar?design=blue&monkey=1",
    "pipe:aws s3 cp s3://b/{0..9}.tar -",
    "pipe:curl -s -H 'Authorization: Bearer ${TOKEN}' https://h/0.tar",
    "pipe:curl -u ada:${PASSWORD} https://h/0.tar",
    "pipe:awk -v code=1 -f pick.awk 0.tar",
    "pipe:rclone --config /home/ada/rclone.conf --sftp-key-file /home/ada/key cat r:b/0.tar",
]
SECRET = {
    "https://h/0.tar?sig=hunter2": "a signature or token (the parameter 'sig')",
    "https://h/0.tar?sv=2020&se=2021-01&sr=c&sp=r&sig=hunter2": "a signature or token (the parameter 'sig')",
    "https://h/0.tar?X-Amz-Algorithm=AWS4&X-Amz-Expires=60&X-Amz-Signature=hunter2": (
        "a signature or token (the parameter 'X-Amz-Signature')"
    ),
    "https://h/0.tar?Expires=1&Signature=hunter2&Key-Pair-Id=K": (
        "a signature or token (the parameter 'Signature')"
    ),
    "https://h/{0..9}.tar?access_token=hunter2": "a signature or token (the parameter 'access_token')",
    "https://h/0.tar?k=hunter2aGc0MTIzNDU2Nzg5MGFi": "a signature or token (the parameter 'k')",
    "https://h/0.tar?hunter2aGc0MTIzNDU2Nzg5MGFi": "a signature or token (a parameter without a name)",
    "https://h/0.tar#token=hunter2": "a signature or token (the parameter 'token')",
    "https://ada:hunter2@h/0.tar": "a user and password",
    "https://${USER}:hunter2@h/0.tar": "a user and password",
    "https://hunter2@h/0.tar": "a user and password",
    "s3://key:hunter2@b/0.tar": "a user and password",
    "pipe:curl https://h/0.tar?token=hunter2": "a signature or token (the parameter 'token')",
    "pipe:curl -H 'Authorization: Bearer hunter2' https://h/0.tar": "a secret (the header Authorization)",
    "pipe:curl -H X-Auth-Token:hunter2 https://h/0.tar": "a secret (the header X-Auth-Token)",
    "pipe:curl -u ada:hunter2 https://h/0.tar": "a user and password (the option -u)",
    "pipe:curl --user ada:hunter2 https://h/0.tar": "a user and password (the option --user)",
    "pipe:curl -uada:hunter2 https://h/0.tar": "a user and password (the option -u)",
    "pipe:curl --oauth2-bearer hunter2 https://h/0.tar": "a secret (the option --oauth2-bearer)",
    "pipe:curl -b 'session=hunter2' https://h/0.tar": "a secret (the option -b)",
    "pipe:env AWS_SECRET_ACCESS_KEY=hunter2 aws s3 cp s3://b/0.tar -": (
        "a secret (the variable AWS_SECRET_ACCESS_KEY)"
    ),
    'pipe:sh -c "curl -u ada:hunter2 https://h/0.tar"': "a user and password (the option -u)",
    "https://h/0.tar;sig=hunter2": "a signature or token (the parameter 'sig')",
    "https://h/a;b/0.tar;v=1;sig=hunter2": "a signature or token (the parameter 'sig')",
    "pipe:get --token hunter2 0.tar": "a secret (the option --token)",
    "pipe:get --api-key=hunter2 0.tar": "a secret (the option --api-key)",
}


@pytest.mark.parametrize("address", HARMLESS)
def test_addresses_without_secrets_are_accepted(address):
    assert find_secret(address) is None


@pytest.mark.parametrize("address", SECRET)
def test_secrets_are_noticed_and_never_shown(address):
    assert find_secret(address) == SECRET[address]
    assert "hunter2" not in without_secrets(f"{address} changed")
    assert "hunter2" not in without_secrets(f"the shard {address!r} is a command")
    assert "hunter2" not in without_signature(address)


@pytest.mark.parametrize("address", SECRET)
def test_a_reference_instead_of_the_secret_names_the_same_shard(address):
    reference = address.replace("hunter2aGc0MTIzNDU2Nzg5MGFi", "${S}").replace("hunter2", "${S}")
    assert find_secret(reference) is None
    assert without_signature(reference) == without_signature(address)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h/0.tar?sig=a", "https://h/1.tar?sig=a"),
        ("https://h/get?id=0&sig=a", "https://h/get?id=1&sig=a"),
        ("https://h/get?sv=1", "https://h/get?sv=2"),  # only next to `sig` is it a part of the signature
        ("s3://a/0.tar", "s3://b/0.tar"),
        ("abfs://a@account/0.tar", "abfs://b@account/0.tar"),
        ("/data/a?sig=1.tar", "/data/a?sig=2.tar"),
        ("pipe:get --token a 0.tar", "pipe:get --token a 1.tar"),
    ],
)
def test_other_shards_stay_others(one, other):
    assert without_signature(one) != without_signature(other)


def test_references_are_resolved_from_variables_and_files(tmp_path: Path, monkeypatch):
    address = "https://ada:${PASSWORD}@h/0.tar?sig=${SIG}&other=${SIG}"
    with pytest.raises(UserError, match=r"refers to \$\{PASSWORD\}, but PASSWORD is not set here; export"):
        resolve(address)

    monkeypatch.setenv("PASSWORD", "hunter2+x")
    (tmp_path / "sig").write_text("first\n")
    monkeypatch.setenv("SIG_FILE", str(tmp_path / "sig"))
    assert resolve(address) == "https://ada:hunter2+x@h/0.tar?sig=first&other=first"
    (tmp_path / "sig").write_text("second")
    assert resolve(address).endswith("?sig=second&other=second")
    monkeypatch.setenv("SIG", "third")
    assert resolve(address).endswith("?sig=third&other=third")

    assert without_secrets("curl: (6) no host hunter2+x, hunter2%2Bx") == (
        "curl: (6) no host ${PASSWORD}, ${PASSWORD}"
    )
    monkeypatch.delenv("SIG")
    monkeypatch.setenv("SIG_FILE", str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"which SIG_FILE names, cannot be read \(No such file"):
        resolve(address)
    monkeypatch.setenv("SIG", "a\r\nHost: b")
    with pytest.raises(UserError, match="the value of SIG has control characters"):
        resolve(address)
    assert resolve("https://h/$SIG/${not a name}/$$") == "https://h/$SIG/${not a name}/$$"


@pytest.mark.parametrize("word", ["a_" * 20_000 + "=x", "--" + "a-" * 20_000, "'x" + "secret_" * 10_000])
def test_long_words_of_commands_are_looked_at_once(word):
    """Names of any length were matched from every place in the word: minutes for a word of 40 kB."""
    assert find_secret(f"pipe:cat {word}") is None
    assert "pipe:cat" in without_secrets(f"pipe:cat {word}")
