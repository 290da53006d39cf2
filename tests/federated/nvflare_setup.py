"""Sites of the tests, which NVFlare constructs in processes."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.federated.site_examples import METHODS, make_example_client, make_net
from uumamba.federated import Client, DFedSAM, Site


class ExampleSetup:
    """One example of the rounds, or of an error at site_2.

    Args:
        example: name of the example.
        fault: what goes wrong: ``raise``, ``die``, ``network`` or nothing.
    """

    def __init__(self, example: str, fault: str = "") -> None:
        self.example, self.fault = example, fault

    def build(self, name: str) -> tuple[nn.Module, Client, DFedSAM]:
        torch.set_num_threads(1)
        index = int(name.rpartition("_")[2]) - 1
        client = make_example_client(self.example, index)
        if name == "site_2" and self.fault in ("raise", "die"):
            client = Client(name, self._fail)
        hidden = 9 if name == "site_2" and self.fault == "network" else 8
        return make_net(hidden=hidden), client, METHODS[self.example]

    def finish(self, site: Site, folder: Path) -> None:
        torch.save(site.state.weights, folder / "weights.pt")

    def _fail(self, number: int) -> Any:
        if number == 1:
            if self.fault == "die":
                os._exit(9)
            raise ValueError("the scanner's folder is gone")
        return make_example_client(self.example, 1).batches(number)
