"""Runs on a host of a launch and answers questions about it. check.py sends this text over ssh and starts it there with the ranks'
Python, so that it needs nothing but the standard library, no checkout and no package.

A question is a line of JSON on standard input, `{"do": NAME, ...}`, its answer a line on standard output. It ends when its input
does, and after `LIFE_SECONDS` whatever happens.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

LIFE_SECONDS = 900
NETWORK_FILE_SYSTEMS = ("nfs", "lustre", "cifs", "smb", "fuse", "beegfs", "gpfs", "ceph", "9p", "virtiofs", "weka", "afs")
CACHE_SECONDS = 65.0
"""For so long a network file system may answer from what it remembers (NFS: acdirmax, 60 s)."""
LOCAL_SECONDS = 2.0
GIB = 2**30


def first_line(path):
    with contextlib.suppress(OSError), open(path) as file:
        return file.readline().strip()
    return ""


def output_of(*words, limit=10.0, folder=None):
    """What a program prints; empty if it is not there, fails or takes too long."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, cwd=folder)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def interfaces():
    """Interface -> its IPv4 address."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(any_socket, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def own_name_address():
    """What the host's own name resolves to, as gloo asks; empty: nothing."""
    with contextlib.suppress(OSError):
        return socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0]
    return ""


def file_system(path):
    """Type of the file system that holds an existing path."""
    best, kind = "", ""
    with contextlib.suppress(OSError), open("/proc/mounts") as file:
        for line in file:
            place, name = line.split()[1:3]
            place = place.replace("\\040", " ")
            if len(place) >= len(best) and (path + "/").startswith(place.rstrip("/") + "/"):
                best, kind = place, name
    return kind


def existing(path):
    """The path, absolute, or its nearest ancestor that is there."""
    path = os.path.realpath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def code(root, parts):
    """Path below root -> digest, of every file that a run of this checkout reads."""
    found = {}
    for part in parts:
        for folder, below, names in os.walk(os.path.join(root, part)):
            below[:] = [name for name in below if name != "__pycache__"]
            for name in names:
                path = os.path.join(folder, name)
                if name.endswith((".py", ".json", ".j2")):
                    with contextlib.suppress(OSError), open(path, "rb") as file:
                        found[os.path.relpath(path, root)] = hashlib.sha256(file.read()).hexdigest()[:12]
    return found


def revision(root):
    """The checkout's commit, with `+` if files differ from it; empty without git."""
    trusting = ("git", "-c", "safe.directory=*", "-C", root)
    commit = output_of(*trusting, "rev-parse", "--short=12", "HEAD").strip()
    changed = commit and output_of(*trusting, "status", "--porcelain", "--untracked-files=no").strip()
    return commit + ("+" if changed else "")


def gpus():
    """[name, memory in MiB, of that in use] of each GPU, by the driver; 0 for what it does not tell (`[N/A]`)."""
    text = output_of("nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits", limit=30.0)
    rows = [line.split(", ") for line in text.splitlines() if line.count(", ") == 2]
    return [[name, *(int(word) if word.isdigit() else 0 for word in numbers)] for name, *numbers in rows]


def facts(root, parts, out):
    folder, shm = existing(out), os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    return {
        "host": socket.gethostname(),
        "boot": first_line("/proc/sys/kernel/random/boot_id"),
        "python": platform.python_version(),
        "addresses": output_of("hostname", "-I").split(),
        "own_name": own_name_address(),
        "interfaces": interfaces(),
        "code": code(root, parts),
        "revision": revision(root),
        "processor": next((w for w in open("/proc/cpuinfo") if w.startswith("model name")), "").partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus(),
        "folder": folder,
        "disk_gib": shutil.disk_usage(folder).free / GIB,
        "shm_gib": shm.f_bavail * shm.f_frsize / GIB if shm else 0.0,
    }


def surroundings(root, limit, **question):
    """What a process as the ranks are finds there (surroundings.py): it imports torch and DeepSpeed, in bounded time."""
    words = [sys.executable, "-m", "sycoca_ds.launch.surroundings", json.dumps(question)]
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if os.path.basename(root) not in ("site-packages", "dist-packages"):  # as data_pipeline.own_package has it
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"importing torch and DeepSpeed and looking at the data took longer than {limit:.0f} s (--limit)"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": said[-1].strip()[:300] if said else f"Python ended with status {done.returncode}"}


WRITTEN = []


def write(path, text):
    """Why a file cannot be written; empty if it could. It is removed at the end."""
    try:
        WRITTEN.append(path)
        with open(path, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return str(error)
    return ""


def read(paths):
    """The texts of files that other hosts have just written; None for one that does not appear."""
    slow = any(file_system(existing(os.path.dirname(path))).startswith(NETWORK_FILE_SYSTEMS) for path in paths)
    until = time.monotonic() + (CACHE_SECONDS if slow else LOCAL_SECONDS)
    while True:
        texts = []
        for path in paths:
            with contextlib.suppress(OSError):
                os.listdir(os.path.dirname(path))  # makes NFS look again
            try:
                with open(path) as file:
                    texts.append(file.read())
            except OSError:
                texts.append(None)
        if None not in texts or time.monotonic() > until:
            return texts
        time.sleep(0.5)


LISTENING = []


def listen(port, token):
    """[port, why not]: from now on whoever connects to the port is told the token. Port 0: any."""
    try:
        if socket.has_dualstack_ipv6():
            server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        else:
            server = socket.create_server(("", port), backlog=128)
    except OSError as error:
        return [port, str(error)]
    LISTENING.append(server)

    def serve():
        while True:
            with contextlib.suppress(OSError), server.accept()[0] as guest:
                guest.sendall(token.encode())

    threading.Thread(target=serve, daemon=True).start()
    return [server.getsockname()[1], ""]


def connect(address, port, token, limit):
    """Why nothing, or nobody that knows the token, answers there; empty if it does."""
    try:
        with socket.create_connection((address, port), timeout=limit) as guest:
            guest.settimeout(limit)
            told = guest.makefile().read(len(token))
    except OSError as error:
        return str(error)
    return "" if told == token else "something else answers there"


def now():
    return time.time()


QUESTIONS = {f.__name__: f for f in (facts, surroundings, write, read, listen, connect, now)}


def main():
    signal.alarm(LIFE_SECONDS)
    print(json.dumps({"ready": os.getpid()}), flush=True)
    try:
        for line in sys.stdin.buffer:
            question = json.loads(line)
            try:
                answer = {"answer": QUESTIONS[question.pop("do")](**question)}
            except Exception as error:  # one thing that cannot be found out must not hide the others
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)
    finally:
        for path in WRITTEN:
            with contextlib.suppress(OSError):
                os.unlink(path)


if __name__ == "__main__":
    main()
