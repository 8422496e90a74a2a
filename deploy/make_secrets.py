#!/usr/bin/env python3
"""Make the passwords of an installation and the files that carry them; change them later.

Needs nothing but Python, so that it runs on a host that has only Docker. What it writes:

    users.acl       what Redis loads: users.acl.template with the passwords' SHA-256 digests
    producer.url    the URL of Redis for OSTEOPAN_REDIS_URL_FILE, a file for each user
    worker.url
    monitor.url
    operator.pass   for the health check of Redis, and for a person in its container
    flower.auth     `name:password` for OSTEOPAN_FLOWER_AUTH_FILE
    options.json    what it was told of Redis, for the next time

The folder is for its owner alone (0700). The files in it are readable by all (0444): a container's user has another
number than the host's, and sees the one file that it was given, not the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import secrets
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

HERE = Path(__file__).resolve().parent
CLIENTS = ("producer", "worker", "monitor")
USERS = (*CLIENTS, "operator")
UNKNOWN_TO_REDIS_7_0 = " +client|setinfo"
PREFIX_PATTERN = r"[A-Za-z0-9_.-]{1,64}"
#: What holds until it is said otherwise.
DEFAULTS: dict[str, str | int | bool] = {
    "host": "redis", "port": 6379, "prefix": "osteopan", "tls": "", "redis_7_0": False,
}  # fmt: skip


def digest(password: str) -> str:
    """A password as an access list carries it."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def render(template: str, *, prefix: str, passwords: dict[str, list[str]]) -> str:
    """The access list that Redis loads: one line a user, no comments.

    Args:
        template: Text of users.acl.template.
        prefix: First part of every key (OSTEOPAN_KEY_PREFIX).
        passwords: By user, the digests of the passwords that are valid.
    """
    lines: list[str] = []
    for line in template.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    values = {user: " ".join(digests) for user, digests in passwords.items()}
    return "".join(line.format(prefix=prefix, **values) + "\n" for line in lines)


def write(path: Path, text: str) -> None:
    """Replace a file whole."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o444)
    Path(temporary).replace(path)


def password_in(path: Path) -> str | None:
    """The password that a file of an earlier run carries; None if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    found = re.search(r"://[^:/@]+:([^@]+)@", text)
    return found[1] if found else text


def digests_in(access_list: Path) -> dict[str, list[str]]:
    """By user, the digests in an access list; those of an earlier password included."""
    if not access_list.exists():
        return {}
    lines = (line.split() for line in access_list.read_text(encoding="utf-8").splitlines())
    return {words[1]: [word for word in words if re.fullmatch("#[0-9a-f]{64}", word)] for words in lines if words}


def url(user: str, password: str, options: argparse.Namespace) -> str:
    """The URL of Redis for a user."""
    where = f"{user}:{password}@{options.host}:{options.port}/0"
    if not options.tls:
        return f"redis://{where}"
    files = {"ssl_ca_certs": "ca.crt", "ssl_certfile": "client.crt", "ssl_keyfile": "client.key"}
    paths = {name: f"{options.tls}/{file}" for name, file in files.items()}
    return f"rediss://{where}?{urlencode({'ssl_cert_reqs': 'required', **paths}, safe='/')}"


def infer(folder: Path) -> dict[str, str | int | bool]:
    """What an earlier version was told, which kept no note of it: from what it wrote."""
    try:
        parts = urlsplit((folder / "worker.url").read_text(encoding="utf-8").strip())
        access_list = (folder / "users.acl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    certificate = parse_qs(parts.query).get("ssl_ca_certs", [""])[0]
    prefix = re.search(rf"~({PREFIX_PATTERN}):job:", access_list)
    return {
        "host": parts.hostname or DEFAULTS["host"],
        "port": parts.port or DEFAULTS["port"],
        "prefix": prefix[1] if prefix else DEFAULTS["prefix"],
        "tls": certificate.rpartition("/")[0],
        "redis_7_0": UNKNOWN_TO_REDIS_7_0 not in access_list,
    }


def recall(options: argparse.Namespace) -> None:
    """Fill in what was not said this time: as it was said last, or else the default."""
    path = options.folder / "options.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = infer(options.folder)
    except ValueError:
        sys.exit(f"make_secrets: {path} is damaged; remove it, and give --host, --port, --prefix and --tls again")
    for name, default in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, before.get(name, default))


def make(options: argparse.Namespace) -> None:
    """Write every file that is missing or to be changed."""
    folder: Path = options.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    write(folder / "options.json", json.dumps({name: getattr(options, name) for name in DEFAULTS}, indent=1) + "\n")
    access_list = folder / "users.acl"
    known = digests_in(access_list)
    valid: dict[str, list[str]] = {}
    for user in USERS:
        path = folder / ("operator.pass" if user == "operator" else f"{user}.url")
        current = password_in(path)
        if current is None or user in options.rotate:
            # Letters and digits, - and _: nothing that a URL would have to quote.
            current = secrets.token_urlsafe(32)
        # The new one first. The one before stays valid until --retire, so that clients can be changed one by one.
        earlier = [] if options.retire else [entry for entry in known.get(user, []) if entry != digest(current)][:1]
        valid[user] = [digest(current), *earlier]
        write(path, (current if user == "operator" else url(user, current, options)) + "\n")
    template = (HERE / "users.acl.template").read_text(encoding="utf-8")
    if options.redis_7_0:
        template = template.replace(UNKNOWN_TO_REDIS_7_0, "")
    write(access_list, render(template, prefix=options.prefix, passwords=valid))
    flower = folder / "flower.auth"
    if not flower.exists() or "flower" in options.rotate:
        write(flower, f"osteopan:{secrets.token_urlsafe(24)}\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Make the passwords of an installation, or change them. Run again, it keeps what is there.",
        epilog="What is said of Redis is remembered. Then: docker compose --profile cpu up --detach --force-recreate. "
        "See docs/operations.md.",
    )
    parser.add_argument("--folder", type=Path, default=HERE / "secrets", help="where the files go (deploy/secrets)")
    parser.add_argument("--host", help="Redis' name in the URLs (redis)")
    parser.add_argument("--port", type=int, help="its port (6379)")
    parser.add_argument("--prefix", help="OSTEOPAN_KEY_PREFIX (osteopan)")
    parser.add_argument(
        "--tls",
        metavar="DIR",
        help="use TLS; DIR is where a client finds ca.crt, client.crt and client.key. Empty: no longer",
    )
    parser.add_argument(
        "--rotate",
        action="append",
        default=[],
        choices=[*USERS, "flower"],
        help="give this user a new password; the one before stays valid as well. Repeat for several",
    )
    parser.add_argument("--retire", action="store_true", help="let only the newest passwords be valid")
    parser.add_argument(
        "--redis-7.0",
        dest="redis_7_0",
        action=argparse.BooleanOptionalAction,
        help="leave out what Redis 7.0, as in Debian 12, does not know",
    )
    options = parser.parse_args()
    recall(options)
    if not re.fullmatch(PREFIX_PATTERN, options.prefix):
        parser.error("--prefix: 1 to 64 letters, digits, dots, hyphens and underscores")
    try:
        make(options)
    except OSError as error:
        sys.exit(f"make_secrets: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
