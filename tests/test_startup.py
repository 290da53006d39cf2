"""Imports of reading a configuration and of prediction."""

import subprocess
import sys

CODE = """
import sys, torch
from uumamba.config import read_config
read_config("acdc_cpu")
read_config("acdc_dg_udim", ["dataset.name=mnms", "track=[tensorboard]"])
print([name for name in ("data_prep", "nibabel", "SimpleITK", "tensorboard") if name in sys.modules])
from uumamba.pipelines import load_predictor
load_predictor("acdc")
from uumamba.nets import UMambaBot
net = UMambaBot(2, 1, 4, features=(4, 8), strides=(1, 2)).eval()
with torch.inference_mode():
    net(torch.zeros(1, 1, 16, 16))
print([name for name in ("torch._dynamo", "sympy", "monai", "scipy.stats", "matplotlib") if name in sys.modules])
"""


def test_a_configuration_loads_no_reader_and_a_prediction_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "[]\n[]\n"
