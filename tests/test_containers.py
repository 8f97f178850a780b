"""launch/compose and launch/kubernetes: valid by their schemas, and in agreement with the service.

Docker and a cluster are not needed. The schemas come with packages of the extra `dev`.
"""

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from sigma_jax import serve
from sigma_jax.serving.api.app import create_app
from sigma_jax.serving.api.keys import Keys
from sigma_jax.serving.rollout import open_active
from sigma_jax.serving.stores.base import LEASE_SECONDS, open_store
from sigma_jax.serving.stores.redis import RedisTenant

LAUNCH = Path(__file__).parents[1] / "launch"
KUBERNETES = LAUNCH / "kubernetes"
MANIFESTS = sorted(set(KUBERNETES.glob("*.yaml")) - {KUBERNETES / "kustomization.yaml"})
KEDA = "keda.sh/"  # its definitions are in the cluster, and in no package
VERSIONS = ("1.30", "1.37")  # the oldest that the manifests are for, and a late one
COMPOSE = yaml.safe_load((LAUNCH / "compose" / "compose.yaml").read_text())
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
OBJECTS = {
    (one["kind"], one["metadata"]["name"]): one
    for path in MANIFESTS
    for one in yaml.safe_load_all(path.read_text())
}
PARSE = """
import json, sys
from sigma_jax import serve
serve.define_flags()
rest = serve.FLAGS(["serve", *sys.argv[1:]])
serve.exports_of(serve.FLAGS.export)
serve.check_host(serve.FLAGS.host, serve.FLAGS.keys)
print(json.dumps({**serve.FLAGS.flag_values_dict(), "rest": rest[1:]}, default=str))
"""


def flags_of(words):
    """The flags of a command line of the service, read as the service does."""
    words = [re.sub(r"\$[({]REDIS_PASSWORD[)}]", "x", word) for word in words]
    run = subprocess.run([sys.executable, "-c", PARSE, *words], capture_output=True, text=True)
    assert not run.returncode, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["rest"] == []
    return found


def container_of(name):
    """The pod and the container of a deployment."""
    pod = OBJECTS["Deployment", name]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    return pod, container


@pytest.fixture(scope="module")
def flags():
    """Place and role -> flags."""
    found = {("kubernetes", name): container_of(name)[1]["args"] for name in ("api", "worker")}
    found |= {("compose", name): COMPOSE["services"][name]["command"] for name in ("api", "worker")}
    return {key: flags_of(words) for key, words in found.items()}


def gigabytes(text):
    """Bytes of "4Gi" or "12gb", in 10^9."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|gb)", text).groups()
    return int(number) * {"Mi": 2**20, "Gi": 2**30, "gb": 2**30}[unit] / 1e9


def test_compose_file_is_valid():
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(COMPOSE, json.loads(schema.read_text()))


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(version):
    core = [one for one in OBJECTS.values() if not one["apiVersion"].startswith(KEDA)]
    assert len(core) > 10
    for one in core:
        kubernetes_validate.validate(one, version, strict=True)


def test_dockerfile_has_no_complaint_of_its_linter():
    command = [Path(sys.executable).parent / "hadolint", LAUNCH / "compose" / "Dockerfile"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert not run.returncode, run.stdout


def test_dockerfile_copies_what_the_image_needs():
    """The files of the package, and no others: the list of files that Docker is given agrees."""
    lines = (LAUNCH / "compose" / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    given = (LAUNCH / "compose" / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in given if line.startswith("!")}
    assert all((LAUNCH.parent / name).exists() for name in copied)
    assert 'ENTRYPOINT ["python", "-m", "sigma_jax.serve"]' in lines


def test_all_manifests_are_applied():
    assert sorted(KUSTOMIZATION["resources"]) == [path.name for path in MANIFESTS]


@pytest.mark.parametrize("place", ["kubernetes", "compose"])
def test_flags_fit_the_roles(flags, place):
    api, worker = flags[place, "api"], flags[place, "worker"]
    assert (api["role"], worker["role"]) == ("api", "worker")
    assert api["store"] == worker["store"] and api["export"] == worker["export"]
    assert api["keys"] and api["host"] == "0.0.0.0"


def test_ports_agree(flags):
    port = flags["kubernetes", "api"]["port"]
    _, container = container_of("api")
    [named] = container["ports"]
    assert named["containerPort"] == port
    [served] = OBJECTS["Service", "api"]["spec"]["ports"]
    assert served["targetPort"] == named["name"]
    annotations = OBJECTS["Deployment", "api"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    [rule] = OBJECTS["NetworkPolicy", "api"]["spec"]["ingress"]
    assert [one["port"] for one in rule["ports"]] == [port]
    [published] = COMPOSE["services"]["api"]["ports"]
    assert published.split(":")[-1] == str(flags["compose", "api"]["port"])
    assert f"EXPOSE {port}" in (LAUNCH / "compose" / "Dockerfile").read_text()


def test_the_store_is_the_redis_that_is_started(flags):
    store = urlsplit(flags["kubernetes", "worker"]["store"])
    [served] = OBJECTS["Service", store.hostname]["spec"]["ports"]
    assert served["port"] == store.port
    for name in ("redis", "to-redis"):
        policy = OBJECTS["NetworkPolicy", name]["spec"]
        rule = policy.get("ingress", policy.get("egress"))[0]
        assert [one["port"] for one in rule["ports"]] == [store.port]
    assert urlsplit(flags["compose", "worker"]["store"]).hostname in COMPOSE["services"]


def test_probes_ask_routes_that_exist():
    app = create_app({}, None, Keys({}, "shop"))
    routes = {getattr(route, "path", "") for route in app.routes}
    _, container = container_of("api")
    for name, path in (
        ("startup", "/healthz"),
        ("readiness", "/readyz?is_warmed_up=true"),
        ("liveness", "/healthz"),
    ):
        probe = container[f"{name}Probe"]["httpGet"]
        assert probe["path"] == path and path.partition("?")[0] in routes
        assert probe["port"] == container["ports"][0]["name"]
    [asked] = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", str(COMPOSE["services"]["api"]))
    assert asked == ("8000", "/readyz")


@pytest.mark.parametrize("name", ["api", "worker"])
def test_paths_of_flags_are_mounted(flags, name):
    """The export read-only, everything that is written on a volume."""
    found = flags["kubernetes", name]
    pod, container = container_of(name)
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {one["name"] for one in mounts.values()} == set(volumes)
    [export] = found["export"]
    beside = str(Path(export).parent)  # other exports, to be rolled out
    assert mounts[beside]["readOnly"] and volumes["exports"]["persistentVolumeClaim"]["readOnly"]
    assert OBJECTS["PersistentVolumeClaim", "exports"]
    if name == "api":
        assert str(Path(found["keys"]).parent) in mounts
        [item] = volumes["keys"]["secret"]["items"]
        assert item["path"] == Path(found["keys"]).name
    else:
        assert not mounts[found["spill"]].get("readOnly")
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {"/cache", "/tmp"} <= set(mounts)
    assert "XDG_CACHE_HOME=/cache" in (LAUNCH / "compose" / "Dockerfile").read_text()
    in_compose = COMPOSE["services"][name]
    [export] = flags["compose", name]["export"]
    assert in_compose["volumes"][0].split(":")[-2] == str(Path(export).parent)
    assert in_compose["volumes"][0].endswith(":ro")


def test_another_export_beside_the_mounted_one_can_be_rolled_out(flags, exported, tmp_path):
    """As in the containers: exports stand in one folder that nobody writes."""
    for place in ("kubernetes", "compose"):
        name = Path(flags[place, "api"]["export"][0]).name
        root = tmp_path / place
        for export in (name, f"{name}-autumn"):
            shutil.copytree(exported, root / export)
        for path in (root, *root.iterdir()):
            path.chmod(0o555)
        rollout = open_active(root / name, open_store(str(tmp_path / f"{place}.db")).tenant("t"))
        assert rollout.names() == [name, f"{name}-autumn"]
        rollout.activate(f"{name}-autumn")
        assert rollout.engine.folder == root / f"{name}-autumn"
        rollout.rollback()
        assert rollout.engine.folder == root / name


def test_a_job_changes_the_catalogue_of_the_mounted_export(flags):
    job = yaml.safe_load((KUBERNETES / "jobs" / "catalogue.yaml").read_text())
    for version in VERSIONS:
        kubernetes_validate.validate(job | {"metadata": {"name": "catalogue"}}, version)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [export] = flags["kubernetes", "api"]["export"]
    assert container["command"][-1] == "sigma_jax.catalogue"
    assert f"--export={export}" in container["args"]
    [mount] = [one for one in container["volumeMounts"] if one["name"] == "exports"]
    assert mount["mountPath"] == str(Path(export).parent) and not mount.get("readOnly")
    [volume] = [one for one in pod["volumes"] if one["name"] == "exports"]
    assert volume["persistentVolumeClaim"] == {"claimName": "exports"}
    tool = COMPOSE["services"]["catalogue"]
    assert tool["entrypoint"][-1] == "sigma_jax.catalogue" and tool["profiles"] == ["tools"]
    assert tool["volumes"][0].endswith(str(Path(flags["compose", "api"]["export"][0]).parent))


def test_workers_have_probes_that_read_their_sign_of_life(flags):
    _, container = container_of("worker")
    in_compose = COMPOSE["services"]["worker"]["healthcheck"]["test"]
    for place, words in (
        ("kubernetes", container["livenessProbe"]["exec"]["command"]),
        ("compose", in_compose[1:]),
    ):
        assert words[:3] == ["python", "-m", "sigma_jax.serving.heartbeat"]
        assert words[3] == flags[place, "worker"]["heartbeat"] and float(words[4]) >= 600


def test_memory_has_room_for_kept_contexts(flags):
    for name in ("api", "worker"):
        _, container = container_of(name)
        kept = flags["kubernetes", name]["kept_gb"]
        assert gigabytes(container["resources"]["requests"]["memory"]) >= kept + 2
    redis = OBJECTS["StatefulSet", "redis"]["spec"]["template"]["spec"]["containers"][0]
    most = redis["args"][redis["args"].index("--maxmemory") + 1]
    assert gigabytes(most) <= 0.75 * gigabytes(redis["resources"]["limits"]["memory"])


def test_secrets_are_those_that_the_reader_is_told_to_make():
    text = (KUBERNETES / "kustomization.yaml").read_text()
    made = set(re.findall(r"--from-(?:file|literal)=([\w.-]+)", text))
    manifests = "".join(path.read_text() for path in MANIFESTS)
    assert set(re.findall(r"\bkey: ([\w.-]+)\n", manifests)) == made
    names = re.findall(r"secretKeyRef:\n +name: (\w+)|secretName: (\w+)", manifests)
    assert {first or second for first, second in names} == {"sigma"}


def test_workers_scale_by_the_stream_of_the_store(flags):
    spec = OBJECTS["ScaledObject", "worker"]["spec"]
    target = spec["scaleTargetRef"]
    assert (target["kind"], target["name"]) in OBJECTS
    [trigger] = spec["triggers"]
    fields = trigger["metadata"]
    assert trigger["type"] == "redis-streams"
    assert fields["stream"] == RedisTenant(None, serve.TENANT)._key("stream")
    assert "consumerGroup" not in fields  # with a group KEDA ignores the length
    store = urlsplit(flags["kubernetes", "worker"]["store"])
    namespace = KUSTOMIZATION["namespace"]
    assert fields["address"] == f"{store.hostname}.{namespace}.svc.cluster.local:{store.port}"
    assert fields["databaseIndex"] == store.path.strip("/")
    assert int(fields["streamLength"]) >= 2 * flags["kubernetes", "worker"]["users_at_once"]
    assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in OBJECTS
    for name in ("api", "worker"):  # a fixed number would undo what the autoscaler decided
        assert "replicas" not in OBJECTS["Deployment", name]["spec"]


def test_a_stopped_pod_has_time_to_finish():
    api, container = container_of("api")
    drain = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    probe = container["readinessProbe"]
    assert drain >= probe["periodSeconds"]
    assert api["terminationGracePeriodSeconds"] >= drain + 60  # the longest deadline_ms
    assert container_of("worker")[0]["terminationGracePeriodSeconds"] > LEASE_SECONDS
    seconds = int(COMPOSE["services"]["worker"]["stop_grace_period"].rstrip("s"))
    assert seconds > LEASE_SECONDS


def test_every_pod_has_a_budget_of_disruptions():
    pods = {name for kind, name in OBJECTS if kind in ("Deployment", "StatefulSet")}
    assert pods == {name for kind, name in OBJECTS if kind == "PodDisruptionBudget"}
