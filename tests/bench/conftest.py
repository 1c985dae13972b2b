import pathlib
import sys

# A server in a process of its own, and what it says on /metrics: as the end-to-end tests have them.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
