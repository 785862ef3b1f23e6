"""The golden vectors of the verifier crate, by a verifier that shares no code with it."""

import subprocess
import sys
import unittest
from pathlib import Path

CHECK = Path(__file__).parents[2] / "crates" / "verifier" / "vectors" / "check.py"


class Vectors(unittest.TestCase):
    def test_another_verifier_gives_the_same_verdicts(self):
        run = subprocess.run([sys.executable, CHECK], capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
