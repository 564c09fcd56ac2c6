"""The real Kubernetes API: etcd, kube-apiserver and kube-controller-manager, compiled from their Go modules."""

import asyncio
import base64
import datetime
import ipaddress
import json
import os
import secrets
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nixops_lab import processes
from nixops_lab.network import entering
from nixops_lab.paths import LabPaths
from nixops_lab.report import LabError

ETCD_PORT = 2379  # inside the namespace, where nobody else is
START_SECONDS = 60

SERVICE_ADDRESS = "10.96.0.1"  # of the Service `kubernetes`: the first of the range
NODE = "lab-node"

# What an API without nodes needs: owner references, namespace deletion, service accounts with their root certificate,
# roles; then what pods on a node need.
CONTROLLERS = (
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "resourcequota-controller",
    "deployment-controller",
    "replicaset-controller",
    "job-controller",
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "pod-garbage-collector-controller",
)


@dataclass(frozen=True)
class Credentials:
    """Made anew at every `up`: bearer tokens of the cluster's users, PEM texts."""

    admin_token: str
    controller_token: str
    scheduler_token: str
    node_token: str
    authority: str
    server_certificate: str
    server_key: str
    service_account_key: str
    kubelet_client_certificate: str
    kubelet_client_key: str


_AUTHORITYS_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def make_credentials() -> Credentials:
    """An authority of the lab's own, and what it signs: the API server at 127.0.0.1 and as a pod's clients name it, and
    the API server as a client of the kubelet. With the extensions that RFC 5280 wants: Python checks them from 3.13 on
    (ssl.VERIFY_X509_STRICT)."""
    authority_key, server_key, service_account_key, client_key = (
        ec.generate_private_key(ec.SECP256R1()) for _ in range(4)
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nixops-lab")])
    now = datetime.datetime.now(datetime.UTC)

    def unsigned(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=365))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    authority = (
        unsigned(name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_AUTHORITYS_USAGE, critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    alternatives = [
        x509.DNSName("localhost"),
        x509.DNSName("kubernetes.default.svc"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address(SERVICE_ADDRESS)),
    ]
    server = (
        unsigned(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")]), server_key.public_key())
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    client_name = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
        x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver-kubelet-client"),
    ]
    client = (
        unsigned(x509.Name(client_name), client_key.public_key())
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )

    def pem(key: ec.EllipticCurvePrivateKey) -> str:
        # SEC 1: kube-apiserver takes service account keys in no other form (k8s.io/client-go/util/keyutil).
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ).decode()

    return Credentials(
        admin_token=secrets.token_hex(24),
        controller_token=secrets.token_hex(24),
        scheduler_token=secrets.token_hex(24),
        node_token=secrets.token_hex(24),
        authority=authority.public_bytes(serialization.Encoding.PEM).decode(),
        server_certificate=server.public_bytes(serialization.Encoding.PEM).decode(),
        server_key=pem(server_key),
        service_account_key=pem(service_account_key),
        kubelet_client_certificate=client.public_bytes(serialization.Encoding.PEM).decode(),
        kubelet_client_key=pem(client_key),
    )


def kubeconfig(port: int, authority: str, token: str, user: str, namespace: str = "default") -> str:
    """One cluster, one user with a bearer token, one context."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "lab",
                    "cluster": {
                        "server": f"https://127.0.0.1:{port}",
                        "certificate-authority-data": base64.b64encode(authority.encode()).decode(),
                    },
                }
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user, "namespace": namespace}}],
            "current-context": "lab",
        }
    )


def audit_policy() -> dict[str, object]:
    """Who did what to which object.

    For the operator's own kinds also the bodies of requests, and what each write made of the object. First matching
    rule wins.
    """
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "users": ["system:apiserver"]},
            {
                "level": "RequestResponse",
                "resources": [{"group": "nixops.dev"}],
                "verbs": ["create", "update", "patch", "delete"],
            },
            {"level": "Request", "resources": [{"group": "nixops.dev"}]},
            {"level": "Metadata"},
        ],
    }


def program_environment() -> dict[str, str]:
    """The caller's, without settings for an etcd of the caller's; etcd 3.4 runs on arm64 only if told to."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    return {**kept, "ETCD_UNSUPPORTED_ARCH": "arm64"}


def etcd_arguments(paths: LabPaths) -> list[str]:
    """Debian's etcd 3.4 is enough for this API server.

    Nothing in a lab outlives a power cut, so etcd need not wait for the disk.
    """
    return [
        "etcd",
        f"--data-dir={paths.control_plane / 'etcd'}",
        "--unsafe-no-fsync",
        "--logger=zap",
        "--log-level=warn",
        f"--listen-client-urls=http://127.0.0.1:{ETCD_PORT}",
        f"--advertise-client-urls=http://127.0.0.1:{ETCD_PORT}",
        f"--listen-peer-urls=http://127.0.0.1:{ETCD_PORT + 1}",
    ]


def apiserver_arguments(programs: Path, paths: LabPaths, port: int) -> list[str]:
    """A plain API server with RBAC and an audit log; tokens from a file, so that no client certificates are needed."""
    folder = paths.control_plane
    return [
        str(programs / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        # The node brings packets to the Service `kubernetes` here itself (node/), whatever its endpoints.
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/16",
        f"--tls-cert-file={folder / 'server.crt'}",
        f"--tls-private-key-file={folder / 'server.key'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={folder / 'kubelet-client.crt'}",
        f"--kubelet-client-key={folder / 'kubelet-client.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'service-account.key'}",
        f"--service-account-signing-key-file={folder / 'service-account.key'}",
        f"--audit-policy-file={folder / 'audit-policy.yaml'}",
        f"--audit-log-path={paths.audit_log}",
        "--audit-log-mode=blocking",
        "--profiling=false",
    ]


def controller_arguments(programs: Path, paths: LabPaths) -> list[str]:
    """Each controller with its own service account and bootstrap role, as in a real cluster."""
    folder = paths.control_plane
    return [
        str(programs / "kube-controller-manager"),
        f"--kubeconfig={folder / 'controllers.kubeconfig'}",
        f"--authentication-kubeconfig={folder / 'controllers.kubeconfig'}",
        f"--authorization-kubeconfig={folder / 'controllers.kubeconfig'}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={folder / 'service-account.key'}",
        f"--root-ca-file={folder / 'authority.crt'}",
        f"--controllers={','.join(CONTROLLERS)}",
    ]


def write_files(paths: LabPaths, credentials: Credentials, port: int) -> None:
    """Everything the three programs read, and the administrator's kubeconfig."""
    folder = paths.control_plane
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    tokens = [
        f'{credentials.admin_token},admin,admin,"system:masters"',
        f"{credentials.controller_token},system:kube-controller-manager,system:kube-controller-manager",
        f"{credentials.scheduler_token},system:kube-scheduler,system:kube-scheduler",
        f'{credentials.node_token},system:node:{NODE},system:node:{NODE},"system:nodes"',
    ]
    contents = {
        folder / "authority.crt": credentials.authority,
        folder / "server.crt": credentials.server_certificate,
        folder / "server.key": credentials.server_key,
        folder / "service-account.key": credentials.service_account_key,
        folder / "kubelet-client.crt": credentials.kubelet_client_certificate,
        folder / "kubelet-client.key": credentials.kubelet_client_key,
        folder / "tokens.csv": "\n".join(tokens) + "\n",
        folder / "audit-policy.yaml": json.dumps(audit_policy()),
        folder / "controllers.kubeconfig": kubeconfig(
            port, credentials.authority, credentials.controller_token, "system:kube-controller-manager"
        ),
        folder / "scheduler.kubeconfig": kubeconfig(
            port, credentials.authority, credentials.scheduler_token, "system:kube-scheduler"
        ),
        folder / "kubelet.kubeconfig": kubeconfig(
            port, credentials.authority, credentials.node_token, f"system:node:{NODE}"
        ),
        paths.kubeconfig: kubeconfig(port, credentials.authority, credentials.admin_token, "admin"),
    }
    for path, content in contents.items():
        path.touch(mode=0o600)
        path.write_text(content)


def is_ready(port: int, authority: Path) -> bool:
    """Asks /readyz, which needs no login."""
    trust = ssl.create_default_context(cafile=str(authority))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    try:
        with opener.open(f"https://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


async def start(programs: Path, paths: LabPaths, port: int, started: Callable[[str, processes.Recorded], None]) -> None:
    """Starts the three and returns when the API answers.

    `started` is told each process at once. Raises LabError with the log's end.
    """
    write_files(paths, make_credentials(), port)
    enter = entering(paths.namespace)
    for name, argv in {
        "etcd": etcd_arguments(paths),
        "kube-apiserver": apiserver_arguments(programs, paths, port),
        "kube-controller-manager": controller_arguments(programs, paths),
    }.items():
        log = paths.logs / f"{name}.log"
        process = processes.start([*enter, *argv], log, program_environment())
        started(name, process)
        if name == "kube-apiserver":
            await until(
                lambda: is_ready(port, paths.control_plane / "authority.crt"), process, name, log, START_SECONDS
            )


async def until(is_true: Callable[[], bool], process: processes.Recorded, name: str, log: Path, limit: float) -> None:
    """Polls from a thread until `is_true`; LabError when `process` ends first or after `limit` seconds."""
    for _ in range(int(limit * 20)):
        if await asyncio.to_thread(is_true):
            return
        if not processes.is_alive(process):
            raise LabError(f"{name} ended while starting. The end of {log}:\n{tail(log)}")
        await asyncio.sleep(0.05)
    raise LabError(f"{name} is not ready after {limit:.0f} s. The end of {log}:\n{tail(log)}")


def tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join("    " + line for line in log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "    (no log)"


class Reader:
    """Reads objects as the lab's administrator, through the forwarder. A call costs a twentieth of kubectl's CPU, which
    counts for whoever asks again and again."""

    def __init__(self, kubeconfig: Path) -> None:
        found = yaml.safe_load(kubeconfig.read_text())
        cluster, user = found["clusters"][0]["cluster"], found["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cadata=authority))
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trust)
        self._server, self._token = cluster["server"], user["token"]

    def get(self, path: str) -> dict[str, Any] | None:
        """What is at `/api…`, without `managedFields`, as kubectl prints it; None if there is none. Raises LabError
        where the server answers otherwise, or not."""
        request = urllib.request.Request(  # noqa: S310 - always https on loopback
            self._server + path, headers={"Authorization": f"Bearer {self._token}"}
        )
        try:
            with self._opener.open(request, timeout=60) as answer:
                found = dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise LabError(f"GET {path}: {error.code} {error.read().decode(errors='replace')}") from None
        except OSError as error:
            raise LabError(f"GET {path}: {error}") from error
        found["metadata"].pop("managedFields", None)
        return found


def kubectl(paths: LabPaths, arguments: Sequence[str], stdin: str = "") -> str:
    """kubectl as the lab's administrator, through the forwarder; its stdout. Raises LabError with its stderr."""
    argv = [str(paths.programs / "kubectl"), f"--kubeconfig={paths.kubeconfig}", *arguments]
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"kubectl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
