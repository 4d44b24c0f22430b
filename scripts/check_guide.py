"""Runs the commands of docs/operating.md unchanged and in order, in a copy of the checkout.

Shell, files, openssl and git are real. `kubectl` and `docker` are stubs that check their arguments: flags are valid,
namespaces, secrets and objects exist before they are used, files exist, and names are those of the manifests (rendered by
the real kubectl) and of docker-compose.yml. The commands run once with the overlay `small`, as in the guide, and once with
`production` in its place. A block under `<!-- OVERLAY alone -->` runs with that overlay only. Used by
scripts/check-deploy.
"""

import json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

import yaml

# Files of the reader: certificates of an authority.
READERS = ["fullchain.pem", "privkey.pem", "ca.crt", "postgres.crt", "redis.crt"] + [
    f"{name}.{end}" for name in ("auth", "product", "order", "gateway") for end in ("crt", "key")
]
CLUSTER_WIDE = {"Namespace"}
KINDS = {
    "deployment": "Deployment",
    "statefulset": "StatefulSet",
    "job": "Job",
    "service": "Service",
    "secret": "Secret",
    "configmap": "ConfigMap",
    "namespace": "Namespace",
    "gateway": "Gateway",
}
# Objects of the cluster itself.
ELSEWHERE = {"storageclass", "gatewayclass", "ingressclass", "pod", "pods"}


# -- the guide --


def commands(text: str, overlay: str):
    """Yields each shell block of the guide, and each inline command of kubectl and docker, with its line number."""
    block, start, alone = None, 0, None
    for number, line in enumerate(text.splitlines(), 1):
        if mark := re.fullmatch(r"<!-- (\w+) alone -->", line):
            alone = mark[1]
        elif re.match(r"\s*```", line):
            if block is not None:
                if alone in (None, overlay):
                    yield start, "\n".join(block)
                block, alone = None, None
            elif line.strip() == "```sh":
                block, start = [], number
        elif block is not None:
            block.append(line)
        else:
            for one in re.findall(r"`((?:kubectl|docker compose) [^`]+)`", line):
                # A command with an ellipsis is incomplete.
                if "…" not in one and not re.search(r"\b(NAME|N|POD|kustomize)\b", one):
                    yield number, one


def check(root: Path, tools: dict[str, Path], overlay: str) -> tuple[int, list[str]]:
    """Runs the commands. Returns their number and the findings."""
    findings, count = [], 0
    with tempfile.TemporaryDirectory(prefix="shoppee-guide-") as scratch:
        checkout, bin, state = Path(scratch) / "checkout", Path(scratch) / "bin", Path(scratch) / "state.json"
        ignored = shutil.ignore_patterns(".git", "target", ".shoppee*", "secrets", ".env", "*.dump")
        shutil.copytree(root, checkout, ignore=ignored)
        subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
        identity = ["-c", "user.name=guide", "-c", "user.email=guide@shop.example"]
        subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "guide"], cwd=checkout, check=True)
        shutil.copy(root / ".gitignore", checkout)
        subprocess.run(["git", "add", "--all"], cwd=checkout, check=True)
        bin.mkdir()
        for name in ("kubectl", "docker", "curl"):
            program = f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {name} "$@"\n'
            (bin / name).write_text(program)
            (bin / name).chmod(0o755)
        (checkout / "scripts/demo").write_text("#!/bin/sh\n")
        certificate = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=shop.example"
        made = "openssl req " + certificate + " -keyout privkey.pem -out fullchain.pem"
        subprocess.run(made.split(), cwd=checkout, check=True, capture_output=True)
        for name in READERS:
            if not (checkout / name).exists():
                shutil.copy(checkout / ("privkey.pem" if name.endswith("key") else "fullchain.pem"), checkout / name)
        if overlay != "small":
            example = (checkout / ".env.example").read_text()
            (checkout / ".env").write_text(re.sub(r"^([A-Z_]+)=$", r"\1=0123456789abcdef", example, flags=re.M))
        state.write_text(json.dumps({"namespaces": ["default", "kube-system"], "objects": {}}))
        environment = os.environ | {
            "PATH": f"{bin}:{os.environ['PATH']}",
            "GUIDE_STATE": str(state),
            "GUIDE_KUBECTL": str(tools["kubectl"]),
            "GUIDE_COMPOSE": str(tools["docker-compose"]),
        }
        text = (root / "docs/operating.md").read_text().replace("overlays/small", f"overlays/{overlay}")
        for number, block in commands(text, overlay):
            # Commands of Compose do not depend on the overlay, so that they run once.
            if overlay != "small" and "docker" in block and "kubectl" not in block:
                continue
            count += 1
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block],
                cwd=checkout,
                env=environment,
                input="secret\n",
                text=True,
                capture_output=True,
            )
            if done.returncode != 0:
                findings.append(f"docs/operating.md:{number} ({overlay}): {done.stderr.strip() or done.stdout.strip() or block}")
        # Files that the commands created are not changes of the checkout.
        made = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=all"], cwd=checkout, text=True, capture_output=True
        ).stdout
        for line in made.splitlines():
            if line.startswith("??"):
                findings.append(f"docs/operating.md makes {line[3:]}, which git does not ignore")
    return count, findings


# -- the stubs of kubectl and docker --


class GuideError(Exception):
    pass


def known_flags(help: str) -> set[str]:
    return set(re.findall(r"^\s+(?:-\w, )?(--[a-z-]+)", help, re.M)) | set(re.findall(r"^\s+(-\w)\b", help, re.M))


def split(arguments: list[str], flags: set[str], switches: set[str]):
    """Splits arguments into words, and values by flag. A flag without `=` that is not a switch takes the next word."""
    words, values = [], {}
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, _, value = word.partition("=")
        if name not in flags:
            raise GuideError(f"no such flag: {name}")
        if not value and name not in switches:
            value = next(rest, None)
            if value is None:
                raise GuideError(f"{name} has no value")
        values.setdefault(name, []).append(value)
    return words, values, list(rest)


class Cluster:
    def __init__(self, path: str):
        self.path = Path(path)
        state = json.loads(self.path.read_text())
        self.namespaces, self.objects = set(state["namespaces"]), state["objects"]

    def save(self):
        self.path.write_text(json.dumps({"namespaces": sorted(self.namespaces), "objects": self.objects}))

    def key(self, namespace: str, kind: str, name: str) -> str:
        return f"{'' if kind in CLUSTER_WIDE else namespace}/{kind}/{name}"

    def get(self, namespace: str, kind: str, name: str):
        if kind == "Namespace" and name in self.namespaces:
            return {}
        stored = self.objects.get(self.key(namespace, kind, name))
        if stored is None:
            raise GuideError(f'{kind.lower()} "{name}" not found in the namespace {namespace}')
        return stored

    def put(self, namespace: str, thing: dict, new: bool = False):
        kind, name = thing["kind"], thing["metadata"]["name"]
        if kind == "Namespace":
            self.namespaces.add(name)
        elif namespace not in self.namespaces:
            raise GuideError(f'{kind.lower()} "{name}": namespaces "{namespace}" not found')
        key = self.key(namespace, kind, name)
        before = self.objects.get(key)
        if before is not None and new:
            raise GuideError(f'{kind.lower()} "{name}" already exists')
        if before is not None and kind in ("Job", "StatefulSet"):
            part = (lambda one: one["spec"]["template"]) if kind == "Job" else lambda one: one["spec"]["serviceName"]
            if part(before) != part(thing):
                raise GuideError(f'{kind} "{name}": field is immutable')
        self.objects[key] = thing

    def apply(self, text: str, default: str):
        things = [thing for thing in yaml.safe_load_all(text) if thing]
        # kubectl applies namespaces first.
        for thing in sorted(things, key=lambda thing: thing["kind"] != "Namespace"):
            self.put(thing["metadata"].get("namespace", default), thing)
        for thing in things:
            namespace = thing["metadata"].get("namespace", default)
            for name in secrets(thing):
                self.get(namespace, "Secret", name)


def secrets(thing: dict) -> set[str]:
    """Returns the secrets that an object requires to start."""
    required = set()
    template = thing.get("spec", {}).get("template", {}).get("spec", {}) if isinstance(thing.get("spec"), dict) else {}
    for volume in template.get("volumes", []):
        if (one := volume.get("secret")) and not one.get("optional"):
            required.add(one["secretName"])
    for container in template.get("containers", []):
        required |= {one["secretRef"]["name"] for one in container.get("envFrom", []) if "secretRef" in one}
        for variable in container.get("env", []):
            one = variable.get("valueFrom", {}).get("secretKeyRef")
            if one and not one.get("optional"):
                required.add(one["name"])
    if thing["kind"] == "Gateway":
        for listener in thing["spec"]["listeners"]:
            required |= {one["name"] for one in listener.get("tls", {}).get("certificateRefs", [])}
    return required


def kubectl(arguments: list[str]) -> None:
    real = os.environ["GUIDE_KUBECTL"]
    ask = lambda *words: subprocess.run([real, *words], text=True, capture_output=True)
    namespace = "default"
    if arguments[:1] == ["-n"]:
        namespace, arguments = arguments[1], arguments[2:]
    verb, depth = arguments[0], 1
    if verb in ("create", "rollout") and len(arguments) > 1:
        depth = 3 if arguments[1] == "secret" else 2
    help = ask(*arguments[:depth], "--help").stdout
    flags = known_flags(help) | {"-n", "--namespace"}
    # The help shows a switch with its default, true or false.
    switches = set(re.findall(r"(--[a-z-]+)=(?:true|false):", help))
    switches |= set(re.findall(r"^\s+(-\w), --[a-z-]+=(?:true|false):", help, re.M)) | {"-it", "-i", "-t"}
    words, values, inside = split(arguments[depth:], flags | {"-it", "-ti"}, switches)
    cluster = Cluster(os.environ["GUIDE_STATE"])
    if verb != "create" and namespace not in cluster.namespaces:
        raise GuideError(f'namespaces "{namespace}" not found')

    def named(words: list[str]):
        """Parses KIND/NAME …, or KIND NAME …"""
        if not words:
            raise GuideError("nothing is named")
        if "/" in words[0]:
            pairs = [word.split("/", 1) for word in words]
        else:
            pairs = [(words[0], word) for word in words[1:]]
        for kind, name in pairs:
            if kind not in KINDS:
                raise GuideError(f"the server doesn't have a resource type {kind}")
            yield KINDS[kind], name

    match verb:
        case "apply":
            if "-k" in values:
                built = ask("kustomize", values["-k"][0])
                if built.returncode != 0:
                    raise GuideError(built.stderr.strip())
                cluster.apply(built.stdout, namespace)
            else:
                cluster.apply(Path(values["-f"][0]).read_text(), namespace)
        case "create":
            # The real kubectl reads and validates the files.
            built = ask(*arguments, "--dry-run=client", "-o", "yaml")
            if built.returncode != 0:
                raise GuideError(built.stderr.strip())
            cluster.put(namespace, yaml.safe_load(built.stdout), new=True)
        case "rollout":
            things = list(named(words))
            if len(things) != 1:
                raise GuideError("rollout takes one at a time")
            for kind, name in things:
                cluster.get(namespace, kind, name)
        case "scale" | "patch" | "label" | "edit":
            things = list(named([word for word in words if "=" not in word]))
            for kind, name in things:
                cluster.get(namespace, kind, name)
            for patch in values.get("-p", []):
                json.loads(patch)
        case "delete":
            for kind, name in named(words):
                key = cluster.key(namespace, kind, name)
                if cluster.objects.pop(key, None) is None and "--ignore-not-found" not in values:
                    raise GuideError(f'{kind.lower()} "{name}" not found')
        case "get":
            if words[0] not in ELSEWHERE:
                for kind, name in named(words):
                    cluster.get(namespace, kind, name)
        case "wait":
            selector = values.get("-l")
            if selector:
                required = set(re.findall(r"shoppee-[a-z]+", selector[0]))
                existing = {
                    thing["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/name")
                    for thing in cluster.objects.values()
                    if isinstance(thing.get("spec", {}).get("template"), dict)
                    and "labels" in thing["spec"]["template"].get("metadata", {})
                }
                if not required or required - existing:
                    raise GuideError(f"no pods with {selector[0]}")
            else:
                for kind, name in named(words):
                    cluster.get(namespace, kind, name)
            if "--for" not in values:
                raise GuideError("wait for what?")
        case "exec":
            owner = cluster.get(namespace, "StatefulSet", words[0].removesuffix("-0"))
            scripts(inside, owner, cluster, namespace)
        case _:
            raise GuideError(f"the stub does not support {verb}")
    cluster.save()


def scripts(command: list[str], owner: dict, cluster: Cluster, namespace: str) -> None:
    """Checks that the pod has the scripts that the command runs."""
    template = owner["spec"]["template"]["spec"]
    for word in command:
        for mount in template["containers"][0]["volumeMounts"]:
            if not word.startswith(mount["mountPath"] + "/"):
                continue
            volume = next(one for one in template["volumes"] if one["name"] == mount["name"])
            files = cluster.get(namespace, "ConfigMap", volume["configMap"]["name"])["data"]
            if word.removeprefix(mount["mountPath"] + "/") not in files:
                raise GuideError(f"{word} is not in the pod")
            return
        if word.startswith("/"):
            raise GuideError(f"{word} is not in the pod")


def docker(arguments: list[str]) -> None:
    if arguments[0] != "compose":
        if arguments[0] == "build" and "--target" in arguments:
            target = arguments[arguments.index("--target") + 1]
            if not re.search(rf"^FROM .* AS {target}$", Path("Dockerfile").read_text(), re.M):
                raise GuideError(f"the Dockerfile has no target {target}")
        return
    compose = os.environ["GUIDE_COMPOSE"]
    ask = lambda *words: subprocess.run([compose, *words], text=True, capture_output=True)
    arguments, profiles = arguments[1:], []
    while arguments[0].startswith("-"):
        if arguments[0] != "--profile":
            raise GuideError(f"no such flag: {arguments[0]}")
        profiles, arguments = [*profiles, arguments[1]], arguments[2:]
    if arguments[0] == "build":
        # Removes hints with ellipses for values.
        arguments = [word for word in arguments if not word.endswith("=…")]
    config = ask("--profile", "*", "config", "--format", "json")
    if config.returncode != 0:
        raise GuideError(config.stderr.strip())
    services = json.loads(config.stdout)["services"]
    there = {name for service in services.values() for name in service.get("profiles", [])}
    for profile in profiles:
        if profile not in there:
            raise GuideError(f"no profile {profile}")
    help = ask(arguments[0], "--help").stdout
    flags = known_flags(help)
    takes = set(re.findall(r"(--[a-z-]+) (?:string|int|scale|stringArray|list|bytes|float)", help))
    words, values, _ = split(arguments[1:] if arguments[0] not in ("exec", "run") else before_command(arguments[1:]), flags, flags - takes - {"-t"})
    for scale in values.get("--scale", []):
        words.append(scale.split("=")[0])
    for word in words:
        if word not in services:
            raise GuideError(f"docker-compose.yml has no {word}")
    if arguments[0] in ("exec", "run"):
        mounts = [volume.get("target", "") for volume in services[words[0]].get("volumes", [])]
        for word in arguments[1:]:
            if re.fullmatch(r"/\S+\.sh", word) and word not in mounts:
                raise GuideError(f"{word} is not in the container of {words[0]}")
    if arguments[0] == "ps":
        print("0123456789ab")


def before_command(arguments: list[str]) -> list[str]:
    """Returns the flags and the service of `exec` and `run`, without the command."""
    for at, word in enumerate(arguments):
        if not word.startswith("-"):
            return arguments[: at + 1]
    return arguments


if __name__ == "__main__":
    program, *rest = sys.argv[1:]
    try:
        {"kubectl": kubectl, "docker": docker, "curl": lambda _: None}[program](rest)
    except GuideError as error:
        sys.exit(f"{program} {' '.join(rest)}: {error}")
