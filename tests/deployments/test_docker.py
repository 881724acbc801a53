"""The image, the compose files and the CI workflows: what can be checked without an engine."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docker.utils.build import exclude_paths
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
GPU = DOCKER / "compose.gpu.yaml"
SECRETS = {
    "POSTGRES_PASSWORD",
    "B3_PREFECT_AUTH",
    "RAY_AUTH_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
}
PYTHON_ROLES = {"prefect-server", "bootstrap", "worker", "ray-head", "ray-worker", "s3"}
RAY_ROLES = {"worker", "ray-head", "ray-worker"}
ONE_SHOT = {"bootstrap"}


def tool(name):
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def passes(*command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert not done.returncode, done.stdout + done.stderr


def merged(base, over):
    """Merge as compose does, as far as these files need it: lists are replaced."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    return {
        key: merged(base[key], over[key]) if key in base and key in over else {**base, **over}[key]
        for key in {**base, **over}
    }


def services(gpu):
    parsed = yaml.safe_load(COMPOSE.read_text())
    if gpu:
        parsed = merged(parsed, yaml.safe_load(GPU.read_text()))
    return parsed["services"]


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def composed(request):
    return services(request.param)


@pytest.fixture
def compose():
    return services(gpu=False)


def strings(node):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    else:
        yield str(node)


def instructions():
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.M)
    return [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_hadolint_finds_nothing():
    passes(tool("hadolint"), DOCKER / "Dockerfile")


def test_every_ignored_lint_says_why():
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    for above, line in zip(lines, lines[1:], strict=False):
        if "hadolint ignore" in line:
            assert above.startswith("# "), line


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.compose-spec", [COMPOSE, GPU]),
        ("vendor.github-workflows", sorted(ROOT.glob(".github/workflows/*.yml"))),
    ],
    ids=["compose", "workflows"],
)
def test_files_have_the_shape_their_readers_expect(schema, files):
    assert len(files) == 2
    passes(tool("check-jsonschema"), "--builtin-schema", schema, *files)


@pytest.mark.parametrize("script", ["worker.sh", "s3.sh", "make-env.sh"])
def test_scripts_parse_and_may_be_executed(script):
    assert (DOCKER / script).stat().st_mode & 0o111
    passes("bash", "-n", DOCKER / script)


def test_python_roles_share_one_image_which_one_of_them_builds(composed):
    ours = {name: s for name, s in composed.items() if s["image"].startswith("b3-batches")}
    assert set(ours) == PYTHON_ROLES
    assert len({service["image"] for service in ours.values()}) == 1
    (built,) = [service for service in ours.values() if "build" in service]
    assert built["image"].endswith(":" + built["build"]["args"]["ACCELERATOR"])
    assert (DOCKER / built["build"]["context"]).resolve() == ROOT
    assert (ROOT / built["build"]["dockerfile"]).is_file()


def test_images_of_others_are_pinned(compose):
    for name in set(compose) - PYTHON_ROLES:
        assert re.search(r":\d+", compose[name]["image"]), name


def test_ray_processes_agree_on_how_they_know_one_another(composed):
    having = {name for name, s in composed.items() if "RAY_AUTH_TOKEN" in s.get("environment", {})}
    assert having == RAY_ROLES
    agreed = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"}
    settings = {
        tuple((key, composed[name]["environment"][key]) for key in sorted(agreed))
        for name in RAY_ROLES
    }
    assert len(settings) == 1
    assert ("RAY_AUTH_MODE", "token") in settings.pop()
    for name in RAY_ROLES - {"ray-head"}:
        assert composed[name]["environment"]["RAY_ADDRESS"] == "ray-head:6379"
    assert {"--port=6379", "--num-cpus=0", "--include-dashboard=false"} <= set(
        composed["ray-head"]["command"]
    )


def test_every_host_that_is_named_is_a_service(composed):
    named = set()
    for service in composed.values():
        named |= set(service.get("depends_on", {}))
        texts = list(strings(service.get("environment", {}))) + list(
            strings(service.get("command"))
        )
        for text in texts:
            plain = re.sub(r"\$\{[^}]*\}", "", text)  # a variable's default is the host's business
            named |= set(re.findall(r"https?://([\w.-]+)", plain))
            named |= set(re.findall(r"(?:^|=)([a-z][\w-]*):\d+$", plain))
        named |= {v for k, v in service.get("environment", {}).items() if k.endswith("_HOST")}
    assert {"postgres", "prefect-server", "ray-head", "s3", "bootstrap"} <= named
    assert named - {"127.0.0.1"} <= set(composed)


def test_what_runs_on_is_watched_and_started_again(composed):
    for name in set(composed) - ONE_SHOT:
        service = composed[name]
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        for key in ("interval", "timeout", "retries", "start_period"):
            assert key in service["healthcheck"], name
        for other, wait in service.get("depends_on", {}).items():
            ended = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert wait["condition"] == ended, name


def test_our_containers_have_an_init_and_no_privileges(composed):
    for name in PYTHON_ROLES:
        assert composed[name]["init"] is True, name
        assert composed[name]["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in composed[name]["security_opt"], name


def test_secrets_come_from_the_environment_alone():
    for file in (COMPOSE, GPU):
        for match in re.finditer(r"\$\{(\w+)([^}]*)\}", file.read_text()):
            if match[1] in SECRETS:
                assert match[2] == ":?set it in docker/.env", match[0]
    for name, service in services(gpu=False).items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"TOKEN|PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY", key):
                assert re.fullmatch(r"\$\{(\w+):\?[^}]+\}", value), f"{name}: {key}"
        assert not re.search(
            r"TOKEN|PASSWORD|SECRET|AUTH", " ".join(strings(service.get("command")))
        )
    in_image = " ".join(rest for word, rest in instructions() if word in ("ARG", "ENV", "COPY"))
    assert not re.search(r"TOKEN|PASSWORD|SECRET|\.env", in_image)


def test_the_example_names_every_secret_and_gives_none():
    given = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / "env.example").read_text(), re.M))
    assert given == dict.fromkeys(SECRETS, "")
    variables = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    named = set(re.findall(r"^(?:# )?(\w+)=", (DOCKER / "env.example").read_text(), re.M))
    assert named == variables


def test_make_env_fills_in_every_secret_once(tmp_path):
    for name in ("make-env.sh", "env.example"):
        shutil.copy(DOCKER / name, tmp_path)
    passes(tmp_path / "make-env.sh")
    made = dict(re.findall(r"^(\w+)=(.*)$", (tmp_path / ".env").read_text(), re.M))
    assert set(made) == SECRETS
    assert len(set(made.values())) == len(SECRETS)
    assert all(len(value) >= 48 for value in made.values())
    assert re.fullmatch(r"b3:\w+", made["B3_PREFECT_AUTH"])
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    again = subprocess.run([tmp_path / "make-env.sh"], capture_output=True, check=False)
    assert again.returncode == 1


def test_only_the_ui_is_published_and_only_to_this_machine(composed):
    published = {name: s["ports"] for name, s in composed.items() if "ports" in s}
    assert published == {"prefect-server": ["${B3_UI_ADDRESS:-127.0.0.1}:${B3_UI_PORT:-4200}:4200"]}
    assert not any("network_mode" in service for service in composed.values())


def test_a_worker_may_let_its_runs_end(compose):
    worker = compose["worker"]
    grace = int(worker["stop_grace_period"].removesuffix("s"))
    drain = int(worker["command"][worker["command"].index("--drain-seconds") + 1])
    assert grace >= 60
    assert drain <= grace - 10
    assert "exec python -m deployments.worker" in (DOCKER / "worker.sh").read_text()


def test_a_ray_node_has_time_to_drain(compose):
    """Ray waits for trainings to keep their step before it ends a node that is told to."""
    grace = int(compose["ray-worker"]["stop_grace_period"].removesuffix("s"))
    assert grace >= RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S + 10 > 10


def test_bootstrap_runs_once_and_workers_after_it(compose):
    assert compose["bootstrap"]["restart"] == "no"
    assert compose["bootstrap"]["command"][:3] == ["python", "-m", "deployments.bootstrap"]
    wait = compose["worker"]["depends_on"]["bootstrap"]["condition"]
    assert wait == "service_completed_successfully"


def test_ray_has_the_shared_memory_that_its_objects_take(compose):
    told = {}
    for name in RAY_ROLES - {"worker"}:
        (told[name],) = [c for c in compose[name]["command"] if "object-store-memory" in c]
    script = (DOCKER / "worker.sh").read_text()
    told["worker"] = re.search(r"--object-store-memory=.*?(\d+)", script)[0]
    for name, option in told.items():
        room = int(compose[name]["shm_size"].removesuffix("gb")) << 30
        assert int(re.search(r"\d+$", option)[0]) < 0.95 * room, name


def test_gpus_go_to_one_ray_node(compose):
    worker = services(gpu=True)["ray-worker"]["deploy"]
    (device,) = worker["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert worker["replicas"] == 1
    assert compose["ray-worker"]["deploy"]["replicas"] == 2


def test_the_last_user_is_not_root():
    users = [rest for word, rest in instructions() if word == "USER"]
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")


def test_what_the_image_copies_exists_and_reaches_the_build():
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    sent = set(exclude_paths(ROOT, patterns))
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for source in [part for part in rest.split() if not part.startswith("--")][:-1]:
                assert source in sent, source


def test_what_the_image_needs_not_stays_outside(tmp_path):
    outside = [
        ".git/config",
        ".venv/bin/python",
        ".b3/store/record.json",
        "docker/.env",
        "flows/.env",
        ".env",
        "tests/conftest.py",
        "data/faq.parquet",
        "b3_core/__pycache__/plan.cpython-311.pyc",
    ]
    for name in [*outside, "b3_core/plan.py", "docker/worker.sh"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    sent = set(exclude_paths(tmp_path, patterns))
    assert {"b3_core/plan.py", "docker/worker.sh"} <= sent
    assert not sent & set(outside)


@pytest.mark.parametrize("workflow", ["ci.yml", "remine.yml"])
def test_workflows_may_do_little_and_run_pinned_actions(workflow):
    text = (ROOT / ".github" / "workflows" / workflow).read_text()
    parsed = yaml.safe_load(text)
    assert parsed["permissions"] == {"contents": "read"}
    assert "concurrency" in parsed
    (job,) = parsed["jobs"].values()
    assert job["timeout-minutes"]
    for step in job["steps"]:
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))
        assert "${{" not in step.get("run", "")  # an input in a script would run as a part of it


def compose_command():
    """The compose client: a plugin of docker, or a program of its own."""
    docker = shutil.which("docker")
    if docker:
        asked = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
        if not asked.returncode:
            return [docker, "compose"]
    return [tool("docker-compose")]


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, GPU]], ids=["cpu", "gpu"])
def test_compose_reads_the_files_and_refuses_a_missing_secret(files, tmp_path):
    command = compose_command() + [part for file in files for part in ("-f", str(file))]
    command += ["--env-file", "/dev/null", "config", "--quiet"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        **dict.fromkeys(SECRETS, "dummy"),
    }

    def run(env):
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    done = run(environment)
    assert (done.returncode, done.stderr) == (0, "")
    for secret in sorted(SECRETS):
        done = run({k: v for k, v in environment.items() if k != secret})
        # Not the exit code: a wrapper of docker-compose on PyPI loses it.
        assert (
            f"required variable {secret} is missing a value: set it in docker/.env" in done.stderr
        )
