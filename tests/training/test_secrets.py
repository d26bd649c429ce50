"""Nothing that a run leaves, and nothing that is said, has a secret of the place of its shards in it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from hyena_ds.cli import main
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.remote.places import read_indices
from hyena_ds.data.shards import read_index
from hyena_ds.errors import UserError
from tests.data.remote.afar_server import AfarServer, serving
from tests.paths import ROOT
from tests.training.runs import make_shards, train, write_config

USER, PASSWORD, SIGNATURE, TOKEN = "mallory17", "p4ss/w@rd?9", "51gnatureX", "t0ken.abc/def+=="
AUTHORIZATION = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SECRETS = (USER, PASSWORD, quote(PASSWORD, safe=""), SIGNATURE, TOKEN, AUTHORIZATION.removeprefix("Basic "))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture()
def server(shards: Path) -> Iterator[AfarServer]:
    with serving(shards) as server:
        server.authorization = AUTHORIZATION
        yield server


def secret_place(server: AfarServer, signature: str = SIGNATURE) -> str:
    host = server.address.removeprefix("http://")
    return f"http://{USER}:{quote(PASSWORD, safe='')}@{host}/genome?signature={signature}"


def secret_command(shards: Path, more: str = "") -> str:
    return f"pipe:test '{TOKEN}' = 't0ken.abc/def+==' && {more} cat {shards}/{{shard}}"


def config_at(path: Path, place: str, stages: int = 1) -> Path:
    cache = {"directory": str(path.parent / "cache"), "stall": 1.0, "patience": 3.0}
    data = {"sources": [{"shards": place}], "cache": cache}
    rows = [{"context_length": 32, "steps": 2, "global_batch": 2, "micro_batch_size": 1}] * stages
    return write_config(path, path, data=data, stages=rows, local_ranks=1, validation={"every_steps": 2, "windows": 2})


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def kept_in(directory: Path) -> str:
    """Names and contents of all files below, with everything that looks like bytes."""
    found = []
    for path in sorted(directory.rglob("*")):
        found.append(str(path.relative_to(directory)))
        if path.is_file():
            found.append(path.read_bytes().decode("latin-1"))
    return "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address", "command"])
def test_a_whole_run_and_everything_that_is_said_of_it_hold_no_secret(
    kind: str,
    server: AfarServer,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    places = {
        "address": (secret_place(server), secret_place(server, f"{SIGNATURE}2")),
        "command": (secret_command(shards), secret_command(shards, "true;")),
    }[kind]
    said = []
    with monkeypatch.context() as outside:
        outside.delenv("XDG_CACHE_HOME")  # what torch builds is there
        for number, place in enumerate(places, 1):
            config_file = config_at(tmp_path / "config.yaml", place if number == 1 else "nowhere", stages=number)
            done = train(config_file, *([f"data.sources.0.shards={place}"] if number > 1 else []))
            assert done.returncode == 0, done.stderr
            said += [done.stdout, done.stderr]
            (tmp_path / "runs" / "run" / "summary.json").unlink(missing_ok=True)
        assert "resuming after step 2" in said[2]
        failing = "pipe:echo refused " + TOKEN + " >&2; false {shard}"
        failed = train(config_at(tmp_path / "failing.yaml", failing), "name=failing")
        assert failed.returncode == 2 and "the command ended with code 1" in failed.stderr
        said += [failed.stdout, failed.stderr]
    run, place = str(tmp_path / "runs" / "run"), places[0]
    config = str(tmp_path / "config.yaml")
    override = f"data.sources.0.shards={place}"
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"name: many\nbase: config.yaml\noutput: {tmp_path}/runs\naxes: {{seed: [1, 2]}}\n")
    expected = {
        ("data", "show", run, "--step", "1"): 2,
        ("data", "show", run, "--step", "1", "--shards", place): 0,
        ("data", "show", run, "--step", "1", "--shards", place, "--json"): 0,
        ("data", "show", run, "--step", "1", "--shards", place, "--shards", place): 2,
        ("report", run): 0,
        ("checkpoints", run, "--verify"): 0,
        ("check", config): 0,
        ("check", config, override): 0,
        ("check", config, f"data.sources.5.shards={place}"): 2,
        ("check", config, f"data.sources.0.weight={place}"): 2,
        ("check", config, f"data.sources=[{{shards: '{place.replace(chr(39), '')}', wheight: 1}}]"): 2,
        ("check", config, f"data.sources.0.shards=ftp://{USER}:{quote(PASSWORD, safe='')}@host/"): 2,
        ("check", config, f"data.sources.0.shards=https://{USER}:{PASSWORD}@host/"): 2,
        ("check", config, f"precision={place}"): 2,
        ("check", config, f"seed={place}"): 2,
        ("check", f"{config}", place): 2,
        ("plan", config, override, "--device", "h200", "--nodes", "1", "--devices-per-node", "1"): 0,
        ("report", run, place): 2,
        ("sweep", str(sweep), "--list"): 0,
        ("sweep", str(sweep), override, "--list"): 0,
        ("sweep", str(sweep), "--slurm"): 0,
        ("sweep", str(sweep), override, "--slurm"): 2,
        ("sweep", str(sweep), override, "--arguments", "0"): 2,
        ("sweep", str(sweep), f"seed={place}", "--list"): 2,
        ("sweep", str(sweep), "--table"): 0,
    }
    for arguments, code in expected.items():
        capfd.readouterr()
        try:
            ended = main(list(arguments))
        except SystemExit as error:
            ended = int(str(error.code))
        found = "".join(capfd.readouterr())
        assert ended == code, (arguments, found)
        assert leaks(found) == [], arguments
        said.append(found)
    assert leaks("\n".join(said)) == []
    assert leaks(kept_in(tmp_path / "runs")) == []
    assert leaks(kept_in(tmp_path / "cache")) == []
    assert leaks(kept_in(tmp_path / "user")) == []


def problem(config: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_indices(load_yaml(config, RunConfig).data)
    return str(caught.value)


def test_a_wrong_password_an_absent_host_and_what_a_server_repeats_are_said_without_secrets(
    server: AfarServer, tmp_path: Path
) -> None:
    server.authorization = "Basic other"
    said = problem(config_at(tmp_path / "a.yaml", secret_place(server)))
    assert "the server answers 401" in said and f"{server.place}/index.json" in said and leaks(said) == []
    absent = f"http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:9/x?signature={SIGNATURE}"
    said = problem(config_at(tmp_path / "b.yaml", absent))
    assert "Connection refused" in said and leaks(said) == []
    for broken in (f"http://{USER}:{SIGNATURE} {TOKEN}@127.0.0.1:9/x", f"http://127.0.0.1:9/a b?{SIGNATURE}"):
        said = problem(config_at(tmp_path / "c.yaml", broken))
        assert leaks(said) == []


def test_a_redirect_to_another_host_is_not_given_the_password(server: AfarServer, shards: Path, tmp_path: Path) -> None:
    with serving(shards) as other:
        server.redirects_to = other.address
        config = load_yaml(config_at(tmp_path / "a.yaml", secret_place(server)), RunConfig)
        assert read_indices(config.data)[0] == read_index(shards)
        assert [authorization for _, authorization in server.seen] == [AUTHORIZATION]
        assert [authorization for _, authorization in other.seen] == [None]


def test_variables_stand_for_secrets_are_looked_up_when_something_is_fetched_and_stay_in_what_is_kept(
    server: AfarServer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = server.address.removeprefix("http://")
    address = f"http://${{GENOME_USER}}:${{GENOME_PASSWORD}}@{host}/genome?signature=${{GENOME_SIGNATURE}}"
    command = f'pipe:test "${{GENOME_PASSWORD}}" = "p4ss/w@rd?9" && cat {shards}/{{shard}}'
    for number, place in enumerate((address, command, "pipe:${GENOME_FETCH}", "pipe:${GENOME_TOOL} {shard}")):
        config = config_at(tmp_path / f"{number}.yaml", place)
        for name in ("GENOME_USER", "GENOME_PASSWORD", "GENOME_SIGNATURE", "GENOME_FETCH", "GENOME_TOOL"):
            monkeypatch.delenv(name, raising=False)
        assert main(["check", str(config)]) == 0
        said = problem(config)
        assert "the environment variable GENOME_" in said and "is not set" in said
        monkeypatch.setenv("GENOME_USER", USER)
        monkeypatch.setenv("GENOME_PASSWORD", PASSWORD)
        monkeypatch.setenv("GENOME_SIGNATURE", SIGNATURE)
        monkeypatch.setenv("GENOME_FETCH", f"cat {shards}/{{shard}} | cat")
        tool = tmp_path / "tool"
        tool.write_text(f"#!/bin/sh\nexec cat {shards}/$1\n")
        tool.chmod(0o700)
        monkeypatch.setenv("GENOME_TOOL", str(tool))
        assert read_indices(load_yaml(config, RunConfig).data)[0] == read_index(shards)
    assert server.seen == [(f"/genome/index.json?signature={SIGNATURE}", AUTHORIZATION)]


def test_a_variable_that_a_command_sets_itself_is_the_shells(shards: Path, tmp_path: Path) -> None:
    place = f"pipe:for GENOME_FILE in {shards}/{{shard}}; do cat ${{GENOME_FILE}}; done"
    config = load_yaml(config_at(tmp_path / "a.yaml", place), RunConfig)
    assert read_indices(config.data)[0] == read_index(shards)


def test_a_config_that_a_run_kept_is_no_place_to_fetch_from(tmp_path: Path) -> None:
    for place in ("pipe:***", "https://***@127.0.0.1:9/x", "https://127.0.0.1:9/x?***"):
        said = problem(config_at(tmp_path / "a.yaml", place))
        assert "which a run keeps without its secrets; name the place of the shards again" in said


def test_a_run_of_an_older_version_is_shown_without_its_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    command = f"pipe:curl -H 'Authorization: {TOKEN}' host/{{shard}}"
    config_at(run / "config.yaml", command)
    address = f"https://{USER}:{SIGNATURE}@host/x"
    (run / "log.txt").write_text(f"changed since: data.sources.0.shards: {command} -> {address}\nnext\n")
    (run / "faults.jsonl").write_text(
        '{"time": "2026-01-01", "step": 1, "rank": 0, "kind": "raised", "text": "' + f'{address}: no"' + "}\n"
    )
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert leaks(page) == [] and "pipe:***" in page and "next" in page
