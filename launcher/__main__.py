"""`python3 -m launcher COMMAND …`, also by its path: `python3 launcher/__main__.py COMMAND …`."""

import gc
import os
import sys
from importlib.util import find_spec

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if not __package__:
    # Run by its path, so that the user's working directory stays theirs.
    sys.path[0] = ROOT

if sys.version_info < (3, 9):
    sys.exit("error: python3 is %d.%d; Python 3.9 or newer is needed" % sys.version_info[:2])
if not (find_spec("jinja2") and find_spec("yaml")):
    setup = os.path.join(ROOT, "launcher", "setup.sh")
    os.execvp("bash", ["bash", setup, "launcher", *sys.argv[1:]])

# A command is a short process of many small objects: looking through them for garbage costs more
# than what is found.
gc.set_threshold(200_000)
if not os.access(os.path.join(ROOT, "launcher"), os.W_OK) and not sys.pycache_prefix:
    # A shared checkout that cannot keep bytecode: this user's cache keeps it.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isdir(os.path.join(ROOT, "launcher", "__pycache__")) and os.access(
        os.path.dirname(cache), os.W_OK
    ):
        sys.pycache_prefix = os.path.join(cache, "moe-zoo")

from launcher.cli import main

sys.exit(main(sys.argv[1:]))
