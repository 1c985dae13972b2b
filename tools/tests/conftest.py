import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

# The models are small: waking a second thread takes longer than they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")
