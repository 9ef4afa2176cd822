"""Copy the exercises to work/ and open JupyterLab on the first page; where there is no display, print the address and serve."""
import os, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def no_display(env, platform):
    "Is there nobody to show a browser to?"
    if env.get("CI") or env.get("SSH_CONNECTION"): return True
    return platform.startswith("linux") and not (env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))


def command(env, platform, extra=()):
    "The line that starts JupyterLab."
    line = [sys.executable, "-m", "jupyterlab", "--LabApp.default_url=/lab/tree/nbs/index.ipynb", "--log-level=ERROR"]
    if no_display(env, platform): line.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0: line.append("--allow-root")
    return [*line, *extra]


if __name__ == "__main__":
    os.chdir(ROOT)
    if subprocess.run([sys.executable, "-m", "llmwatch_course.cli", "start"]).returncode: sys.exit(1)
    line = command(os.environ, sys.platform, sys.argv[1:])
    if "--no-browser" in line: print("JupyterLab prints its address below; open it in a browser. Ctrl-C stops it.", flush=True)
    os.execv(line[0], line)
