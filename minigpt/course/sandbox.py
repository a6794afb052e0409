"""Where other people's code runs when it is graded: without a network, and without anything else of this machine.

The isolation is bubblewrap's (``bwrap``), which Linux distributions have as a package and Flatpak is built on. Whether
it isolates is tried before anything runs in it: a probe attempts what must not be possible.
"""

import os
import shutil
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

from minigpt.course import child
from minigpt.course.check import Child, job_of
from minigpt.errors import UserError

SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
SCRATCH = 64 << 20  # bytes of files that an answer may write, which are in memory and gone with it

PROBE = '''
import os
import socket


def probe(port, secret, program, process, submission):
    """What of all that must be impossible is possible. Whether a file was written is for its owner to see."""
    could = []

    def attempt(what, action):
        try:
            action()
            could.extend([what] if what else [])
        except (OSError, ImportError):
            pass

    attempt("reach the network", lambda: socket.create_connection(("127.0.0.1", port), 2))
    attempt("read your files", lambda: open(secret).read())
    attempt("read the submissions", lambda: os.lstat(submission))
    attempt("", lambda: open(secret, "w").write("written"))
    attempt("write into this system", lambda: open(os.path.join(os.path.dirname(os.__file__), "written"), "w"))
    attempt("import the solutions", lambda: __import__(program))
    attempt("see your processes", lambda: os.kill(process, 0))
    return could
'''


def command() -> list[str]:
    """What runs ``child.py`` isolated.

    It sees the system's programs, Python and its packages, read-only, but not minigpt's, which hold the solutions; a
    folder in memory; no process, no user, no network of the machine.

    Raises:
        UserError: there is no bubblewrap.
    """
    wrap = shutil.which("bwrap") if sys.platform == "linux" else None
    if wrap is None:
        raise UserError(missing("bubblewrap (the program bwrap) isn't installed"))
    package, packages = Path(__file__).parents[1], Path(torch.__file__).parents[1]
    seen = [Path(path) for path in (*SYSTEM, sys.base_prefix, sys.prefix, sysconfig.get_path("stdlib"), packages)]
    arguments = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    variables = {"PATH": os.defpath, "HOME": "/tmp", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    variables["PYTHONUSERBASE"] = site.getuserbase()  # PyTorch may be there, by pip install --user
    for name, value in variables.items():
        arguments += ["--setenv", name, value]
    arguments += ["--size", str(SCRATCH), "--tmpfs", "/tmp"]
    for path in seen:
        arguments += ["--ro-bind-try", str(path), str(path)]
    arguments += ["--dev", "/dev"]
    if any(package.is_relative_to(path) for path in seen):
        arguments += ["--tmpfs", str(package), "--remount-ro", str(package)]
    arguments += ["--ro-bind", child.__file__, "/child.py", "--remount-ro", "/dev", "--remount-ro", "/"]
    return ["/usr/bin/env", "-i", wrap, *arguments, "--chdir", "/tmp", sys.executable, "-P", "/child.py"]


def missing(why: str) -> str:
    """What to do without isolation."""
    return (
        f"Submissions are other people's programs, and nothing isolates them here: {why}. On Debian and Ubuntu: apt "
        "install bubblewrap; on Windows grade in WSL, on macOS in a container or virtual machine with Linux. If you "
        "have read all submissions, or trust whoever wrote them, --trust runs them without."
    )


def tried(folder: Path, submission: Path) -> list[str]:
    """The command of :func:`command`, after a probe could do nothing in it.

    Args:
        folder: of the user's, where a file is put that must stay out of reach.
        submission: what must too, as an absolute path.

    Raises:
        UserError: it doesn't run here, or it doesn't isolate.
    """
    wrapped = command()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        tempfile.NamedTemporaryFile(dir=folder) as secret,
        Child(wrapped) as process,
    ):
        inputs = server.getsockname()[1], secret.name, "minigpt.course.exercises.attend", os.getpid(), str(submission)
        try:
            report, said = process.run(job_of("probe", PROBE.encode(), "probe.py", [inputs]))
        except subprocess.TimeoutExpired:
            report, said = None, "it doesn't end"
        except UserError as error:
            report, said = None, str(error)
        written = ["write your files"] if Path(secret.name).read_bytes() else []
    if report is None or report["state"] != "ran":
        raise UserError(missing(f"bubblewrap doesn't run: {' '.join((said or str(report)).split())[-300:]}"))
    if could := written + report["draws"][0]["values"]["items"]:
        raise UserError(missing(f"in bubblewrap a program can {', '.join(map(str, could))}"))
    return wrapped
