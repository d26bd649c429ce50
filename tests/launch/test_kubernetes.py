"""launch/kubernetes.yaml and kubernetes.sh: valid by the published schemas, true to the code, and run as two pods."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyena_ds.errors import NotFiniteError, UserError
from hyena_ds.parallel.listening import free_port
from hyena_ds.runtime.interruption import DEADLINE_CODE
from tests.paths import ROOT
from tests.training.runs import make_shards, rows, train, write_config

OLDEST = "1.29"
"""The first release whose schema knows that a rule of podFailurePolicy needs no onPodConditions."""
TIMEOUT = 400
STEPS = 120


def shipped() -> dict[str, Any]:
    return _by_kind((ROOT / "launch" / "kubernetes.yaml").read_text())


def printed(config: Path, *overrides: str, **settings: str) -> dict[str, Any]:
    """What kubernetes.sh prints, by kind."""
    command = ["bash", "launch/kubernetes.sh", str(config), *overrides]
    environment = {"PATH": os.environ["PATH"], **settings}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return _by_kind(done.stdout)


def _by_kind(text: str) -> dict[str, Any]:
    return {resource["kind"]: resource for resource in yaml.safe_load_all(text)}


def trainer(resources: dict[str, Any]) -> dict[str, Any]:
    (container,) = resources["Job"]["spec"]["template"]["spec"]["containers"]
    return container


def environment(resources: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["value"] for row in trainer(resources)["env"]}


CONFIG = ROOT / "configs" / "quickstart.yaml"
SETTINGS: list[dict[str, str]] = [
    {},
    {
        "NODES": "4",
        "GPUS": "8",
        "NAME": "long-run",
        "IMAGE": "registry.example:5000/team/hyena-ds:1",
        "CLAIM": "shared",
    },
    {"NODES": "2", "RANKS": "2", "CPUS": "3", "MEMORY": "8Gi", "FORWARD": "NOTE", "NOTE": "it's a: b #c"},
]


def validate(resource: dict[str, Any], version: str) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(resource, version, strict=True)


def versions() -> list[str]:
    import kubernetes_validate

    return [OLDEST, kubernetes_validate.latest_version()]


def documented() -> dict[str, Any]:
    """The manifests that the guide asks to write."""
    blocks = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs" / "do" / "kubernetes.md").read_text(), re.DOTALL | re.MULTILINE
    )
    return _by_kind("\n---\n".join(block for block in blocks if "apiVersion" in block))


def test_the_manifests_are_valid_by_the_published_schemas() -> None:
    assert documented().keys() == {"PersistentVolumeClaim", "Pod"}
    for resources in (shipped(), documented(), *(printed(CONFIG, "name=x", **settings) for settings in SETTINGS)):
        for resource in resources.values():
            for version in versions():
                validate(resource, version)


def test_the_schemas_would_notice_a_misspelt_key() -> None:
    import kubernetes_validate

    wrong = copy.deepcopy(shipped()["Job"])
    wrong["spec"]["podFailurePolicies"] = wrong["spec"].pop("podFailurePolicy")
    for version in versions():
        with pytest.raises(kubernetes_validate.ValidationError):
            validate(wrong, version)


@pytest.mark.parametrize("settings", [None, *SETTINGS])
def test_names_and_numbers_agree_between_the_parts(settings: dict[str, str] | None) -> None:
    resources = shipped() if settings is None else printed(CONFIG, **settings)
    job, service, container = resources["Job"], resources["Service"], trainer(resources)
    name, spec, pod = job["metadata"]["name"], job["spec"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    seen = environment(resources)
    assert seen["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(seen["NNODES"])
    limits = container["resources"]["limits"]
    assert limits.get("nvidia.com/gpu", int(seen["RANKS"])) == int(seen["RANKS"])
    assert int(seen["OMP_NUM_THREADS"]) == max(1, limits["cpu"] // int(seen["RANKS"]))
    mounted = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == mounted
    config = next(volume["configMap"] for volume in pod["volumes"] if volume["name"] == "config")
    assert config["name"] == resources.get("ConfigMap", job)["metadata"]["name"]


def test_settings_and_the_config_arrive_unchanged() -> None:
    resources = printed(CONFIG, "name=it's", "stages.0.steps=3", **SETTINGS[2])
    assert resources["ConfigMap"]["data"]["config.yaml"].rstrip("\n") == CONFIG.read_text().rstrip("\n")
    assert trainer(resources)["args"] == ["/config/config.yaml", "name=it's", "stages.0.steps=3"]
    assert environment(resources)["NOTE"] == "it's a: b #c"
    assert trainer(resources)["resources"]["limits"] == {"cpu": 3, "memory": "8Gi"}
    named = printed(CONFIG, **SETTINGS[1])
    assert trainer(named)["image"] == SETTINGS[1]["IMAGE"]
    volumes = named["Job"]["spec"]["template"]["spec"]["volumes"]
    claims = [volume["persistentVolumeClaim"] for volume in volumes if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": "shared"}]
    assert trainer(named)["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_a_mistake_is_not_tried_again_and_an_interruption_does_not_count() -> None:
    rules = shipped()["Job"]["spec"]["podFailurePolicy"]["rules"]
    name = trainer(shipped())["name"]
    codes = {rule["action"]: rule["onExitCodes"] for rule in rules if "onExitCodes" in rule}
    assert all(on["containerName"] == name and on["operator"] == "In" for on in codes.values())
    assert codes["FailJob"]["values"] == [UserError.exit_code, NotFiniteError.exit_code]
    assert codes["Ignore"]["values"] == [DEADLINE_CODE, 128 + signal.SIGUSR1, 128 + signal.SIGTERM]
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in rules


class Pods:
    """The pods of a Job as processes of this machine: the container's command and environment, with this machine's paths."""

    def __init__(self, resources: dict[str, Any], config: Path):
        self.config = config
        self.directory = config.parent
        container = trainer(resources)
        self._command = [self._here(word) for word in container["command"] + container["args"]]
        here = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
        }
        here |= {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
        self._environment = {**os.environ, **environment(resources), **here}
        self.processes = [
            subprocess.Popen(
                self._command,
                cwd=self.directory,
                env={**self._environment, "JOB_COMPLETION_INDEX": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(resources["Job"]["spec"]["completions"])
        ]

    def _here(self, word: str) -> str:
        return word.replace("/opt/hyena-ds", str(ROOT)).replace("/config/config.yaml", str(self.config))

    def end(self) -> list[tuple[int, str]]:
        """Exit code and output of each."""
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in self.processes]
        return [(process.returncode, output) for process, output in zip(self.processes, outputs, strict=True)]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()  # its ranks leave when it is gone
            process.wait()


@pytest.fixture
def started() -> Iterator[list[Pods]]:
    pods: list[Pods] = []
    yield pods
    for each in pods:
        each.kill()


def test_two_pods_train_save_when_one_is_evicted_and_go_on(tmp_path: Path, started: list[Pods]) -> None:
    stages = [{"context_length": 64, "steps": STEPS, "global_batch": 4, "micro_batch_size": 2, "sequence_parallel": 2}]
    often = {"every_steps": 10 * STEPS}
    config = write_config(
        tmp_path / "config.yaml", make_shards(tmp_path), stages=stages, validation=often, checkpoint=often
    )
    resources = printed(config, NODES="2")
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    first = Pods(resources, config)
    started.append(first)
    deadline = time.monotonic() + TIMEOUT
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert all(process.poll() is None for process in first.processes) and time.monotonic() < deadline, first.end()
        time.sleep(0.02)
    first.processes[1].send_signal(signal.SIGTERM)
    endings = first.end()
    assert [code for code, _ in endings] == [128 + signal.SIGTERM] * 2, endings
    found = re.search(r"stopped by SIGTERM after step (\d+) of", endings[0][1])
    assert found is not None and 3 <= int(found[1]) < STEPS, endings[0][1]
    second = Pods(resources, config)
    started.append(second)
    endings = second.end()
    assert [code for code, _ in endings] == [0, 0], endings
    assert f"resuming after step {found[1]} " in endings[0][1]
    whole = train(config, "name=whole")
    assert whole.returncode == 0, whole.stderr
    assert rows(metrics.parent) == rows(tmp_path / "runs" / "whole")


def test_a_users_mistake_ends_both_pods_with_the_code_that_fails_the_job(tmp_path: Path, started: list[Pods]) -> None:
    config = write_config(tmp_path / "config.yaml", tmp_path / "nowhere")
    pods = Pods(printed(config, NODES="2"), config)
    started.append(pods)
    endings = pods.end()
    assert [code for code, _ in endings] == [UserError.exit_code] * 2, endings
    assert "".join(output for _, output in endings).count("hyena-ds: error: ") == 1


@pytest.mark.parametrize(
    ("overrides", "settings", "said"),
    [
        (["name=a\nb"], {}, r"override: found \$'name=a\\nb', wanted one line of text"),
        ([], {"NAME": "a\nb: c"}, r"NAME: found \$'a\\nb: c', wanted a small letter"),
        ([], {"NAME": "$(touch pwned)"}, "NAME: found"),
        ([], {"IMAGE": "a|w pwned"}, "IMAGE: found"),
        ([], {"MEMORY": "1Gi\n"}, "MEMORY: found"),
        ([], {"CLAIM": "a&b"}, "CLAIM: found"),
        ([], {"NODES": "a[$(touch pwned)]"}, "NODES: found"),
        ([], {"RANKS": "-1"}, "RANKS: found"),
        ([], {"FORWARD": "a[$(touch>pwned)]"}, "FORWARD: found"),
        ([], {"FORWARD": "NOTE", "NOTE": "a\nb"}, r"NOTE: found \$'a\\nb', wanted one line of text"),
    ],
)
def test_a_setting_that_would_write_other_yaml_or_run_a_command_is_refused(
    overrides: list[str], settings: dict[str, str], said: str, tmp_path: Path
) -> None:
    command = ["bash", str(ROOT / "launch" / "kubernetes.sh"), str(CONFIG), *overrides]
    environment = {"PATH": os.environ["PATH"], **settings}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert re.search(said, done.stderr) and len(done.stderr.splitlines()) == 1
