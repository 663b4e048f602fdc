"""`python3 -m launcher COMMAND …`, also by its path: `python3 launcher/__main__.py COMMAND …`."""

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

from launcher.cli import main

sys.exit(main(sys.argv[1:]))
