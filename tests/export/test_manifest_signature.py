"""Who signed a manifest: by this command and by Debian's minisign, through every command that writes one."""

from __future__ import annotations

import json
import random
import shutil
import stat
from pathlib import Path

import pytest

from classifier_command import add_classifier
from fake_tensorrt import FakeToolkit
from keys import make_key, minisign
from tiny_clip import write_tiny_checkpoint
from tritonclip_client.main import main
from tritonclip_export.engine.build import EngineRequest, build
from tritonclip_export.errors import ExportError, SignatureError
from tritonclip_export.repository.manifest import CODE, MANIFEST, SIGNATURE, read_manifest, verify
from tritonclip_export.repository.signature import PASSWORD, PASSWORD_FILE, Signer

LABELS = ("cat", "dog")
FLIPS = 300


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_key(tmp_path)


@pytest.fixture
def signed(repository: Path, keys: tuple[Path, Path]) -> Path:
    """The demo's repository, signed."""
    assert main(["sign", str(repository), "--key", str(keys[0])]) == 0
    return repository


def check(repository: Path, public: object) -> int:
    return main(["check", str(repository), "--verify-key", str(public)])


def test_a_signed_repository_is_proven(signed: Path, keys: tuple[Path, Path], capsys) -> None:
    assert check(signed, keys[1]) == 0
    assert f"signed by {keys[1]}" in capsys.readouterr().out
    # The key itself does as well as the file with it, and a signature harms nobody who does not ask for it.
    assert check(signed, keys[1].read_text().splitlines()[1]) == 0
    assert main(["check", str(signed)]) == 0
    assert "its signature was not compared with a key: give --verify-key" in capsys.readouterr().out


def test_another_key_and_no_signature(signed: Path, tmp_path: Path, capsys) -> None:
    _, other = make_key(tmp_path, "other")
    assert check(signed, other) == 2
    assert f"the manifest of {signed} is not what {other} signed" in capsys.readouterr().err
    (signed / SIGNATURE).unlink()
    assert check(signed, other) == 2
    error = capsys.readouterr().err
    assert f"{signed} is not signed: manifest.json.minisig by {other} is expected" in error
    assert f"tritonclip sign {signed} --key KEY" in error


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 400, b"a\nb\nc\nd\n", b"untrusted comment: a\n" * 4])
def test_a_damaged_signature(signed: Path, keys: tuple[Path, Path], content: bytes, capsys) -> None:
    (signed / SIGNATURE).write_bytes(content)
    assert check(signed, keys[1]) == 2
    assert "is not what" in capsys.readouterr().err


def test_a_file_and_its_hash_changed_together_are_noticed(signed: Path, keys: tuple[Path, Path], capsys) -> None:
    from tritonclip_export.repository.manifest import file_hash

    code = signed / "similarity" / "1" / "model.py"
    code.write_text(code.read_text() + "\n# evil\n")
    manifest = read_manifest(signed)
    manifest["files"]["similarity/1/model.py"] = file_hash(code)
    (signed / MANIFEST).write_text(json.dumps(manifest))
    verify(signed)
    assert check(signed, keys[1]) == 2
    assert "is not what" in capsys.readouterr().err


def test_every_flip_of_a_bit_is_noticed_with_a_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    for _ in flipped(signed):
        with pytest.raises(SignatureError):
            verify(signed, level=CODE, key=str(keys[1]))


def test_without_one_every_flip_in_what_is_served_is(repository: Path) -> None:
    """What is left are accounts: dates, tools, parity, where the checkpoint was."""
    before, unnoticed = read_manifest(repository), 0
    for _ in flipped(repository):
        try:
            after = verify(repository)
        except ExportError:
            continue
        unnoticed += 1
        assert [after[name] for name in ("format", "spec", "files")] == [
            before[name] for name in ("format", "spec", "files")
        ]
    assert unnoticed < FLIPS


def flipped(repository: Path):
    """Let the manifest have one wrong bit at a time, and put it right at the end."""
    path, rng = repository / MANIFEST, random.Random(12)
    content = path.read_bytes()
    for _ in range(FLIPS):
        wrong = bytearray(content)
        wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
        path.write_bytes(wrong)
        yield
    path.write_bytes(content)


def test_an_export_signs(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    out = tmp_path / "out"
    assert main(["export", str(source), str(out), "--sign", str(keys[0])]) == 0
    assert check(out, keys[1]) == 0


def test_a_key_that_cannot_be_used_is_told_before_the_export(tmp_path: Path, capsys) -> None:
    assert main(["export", "nothing", str(tmp_path / "out"), "--sign", str(tmp_path / "none")]) == 2
    assert "the secret key" in capsys.readouterr().err


def change_settings(repository: Path, *options: str) -> None:
    assert main(["configure", str(repository), "--max-image-batch", "4", *options]) == 0


def change_classifiers(repository: Path, *options: str) -> None:
    (repository.parent / "labels.txt").write_text("\n".join(LABELS))
    add_classifier("build", repository, "--name", "a", "--labels", repository.parent / "labels.txt", *options)


def change_engines(repository: Path, *options: str) -> None:
    signer = Signer(Path(options[1])) if options else None
    build(EngineRequest(repository, tensorrt_runtime=True, signer=signer), FakeToolkit())


@pytest.mark.parametrize("change", [change_settings, change_classifiers, change_engines])
def test_a_change_signs_again_or_takes_the_signature_away(
    change, signed: Path, keys: tuple[Path, Path], capsys
) -> None:
    change(signed, "--sign", str(keys[0]))
    assert check(signed, keys[1]) == 0
    assert "not signed any more" not in capsys.readouterr().err
    other = shutil.copytree(signed, signed.parent / "other")
    # What was there before is changed back, in the copy, without the key.
    assert main(["configure", str(other), "--max-text-batch", "3"]) == 0
    assert f"note: {other} was changed, and is not signed any more: tritonclip sign" in capsys.readouterr().err
    verify(other)
    assert check(other, keys[1]) == 2
    assert [path.name for path in signed.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("change", [change_settings, change_classifiers, change_engines])
def test_nobody_elses_change_is_signed_along(change, signed: Path, tmp_path: Path) -> None:
    """With a hash to fit, a change of the code would get a signature by the next change of a setting."""
    mine, _ = make_key(tmp_path, "mine")
    before = {path: path.read_bytes() for path in signed.rglob("*") if path.is_file()}
    for unsigned in (False, True):
        if unsigned:
            (signed / SIGNATURE).unlink()
            del before[signed / SIGNATURE]
        with pytest.raises((SignatureError, AssertionError)):
            change(signed, "--sign", str(mine))
        assert {path: path.read_bytes() for path in signed.rglob("*") if path.is_file()} == before


def test_what_is_not_as_exported_gets_no_signature(repository: Path, keys: tuple[Path, Path], capsys) -> None:
    (repository / "clip" / "1" / "README").write_text("changed")
    assert main(["sign", str(repository), "--key", str(keys[0])]) == 2
    assert "clip/1/README was changed" in capsys.readouterr().err
    assert not (repository / SIGNATURE).exists()


def test_keys_are_the_owners_and_are_not_written_over(keys: tuple[Path, Path], capsys) -> None:
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    before = keys[0].read_bytes()
    assert main(["sign", "--generate", str(keys[0]), "--no-password"]) == 2
    assert "exists already; give another path" in capsys.readouterr().err
    assert keys[0].read_bytes() == before


def test_a_password_comes_from_the_environment_or_a_file(repository: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    key = tmp_path / "locked"
    monkeypatch.setenv(PASSWORD, "horse")
    assert main(["sign", "--generate", str(key)]) == 0
    assert main(["sign", str(repository), "--key", str(key)]) == 0
    monkeypatch.setenv(PASSWORD, "cow")
    assert main(["sign", str(repository), "--key", str(key)]) == 2
    assert "wrong password" in capsys.readouterr().err
    monkeypatch.delenv(PASSWORD)
    assert main(["sign", str(repository), "--key", str(key)]) == 2
    assert f"nobody can be asked for it here; set {PASSWORD_FILE}" in capsys.readouterr().err
    (tmp_path / "password").write_text("horse\n")
    monkeypatch.setenv(PASSWORD_FILE, str(tmp_path / "password"))
    assert main(["sign", str(repository), "--key", str(key)]) == 0
    assert check(repository, f"{key}.pub") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DIR"], "give DIR and --key KEY to sign, or --generate KEY"),
        (["--key", "KEY"], "give DIR and --key KEY to sign, or --generate KEY"),
        (["DIR", "--key", "KEY", "--no-password"], "give DIR and --key KEY to sign, or --generate KEY"),
        (["DIR", "--generate", "NEW"], "--generate makes keys and signs nothing"),
        (["DIR", "--key", "PUB"], "cannot be used"),
        (["DIR", "--key", "NEW"], "cannot be read"),
    ],
)
def test_what_sign_refuses(words: list[str], message: str, repository: Path, keys, tmp_path: Path, capsys) -> None:
    given = {"DIR": repository, "KEY": keys[0], "PUB": keys[1], "NEW": tmp_path / "new"}
    capsys.readouterr()
    assert main(["sign", *(str(given.get(word, word)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_no_public_key(signed: Path, keys: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    for given in (tmp_path / "gone.pub", keys[0], "RWQ"):
        assert check(signed, given) == 2
        assert f"{given} is no public key of minisign" in capsys.readouterr().err


def test_debians_minisign_proves_what_is_signed_here(signed: Path, keys: tuple[Path, Path]) -> None:
    shown = minisign("-V", "-H", "-p", keys[1], "-m", signed / MANIFEST)
    assert "Signature and comment signature verified" in shown
    assert f"fingerprint:{read_manifest(signed)['spec']['fingerprint']}" in shown


def test_what_debians_minisign_signs_is_proven_here(repository: Path, tmp_path: Path, monkeypatch) -> None:
    key, public = tmp_path / "theirs.key", tmp_path / "theirs.pub"
    minisign("-G", "-W", "-s", key, "-p", public)
    minisign("-S", "-s", key, "-m", repository / MANIFEST)
    assert check(repository, public) == 0


def test_a_key_that_debians_minisign_locked_signs_here(repository: Path, tmp_path: Path, monkeypatch) -> None:
    key, public = tmp_path / "theirs.key", tmp_path / "theirs.pub"
    minisign("-G", "-s", key, "-p", public, answers="horse\nhorse\n")
    monkeypatch.setenv(PASSWORD, "horse")
    assert main(["sign", str(repository), "--key", str(key)]) == 0
    minisign("-V", "-p", public, "-m", repository / MANIFEST)
