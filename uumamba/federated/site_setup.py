"""Part of a job that each real site runs, and its errors."""

from pathlib import Path
from typing import Protocol

from torch import nn

from uumamba.federated.clients import Client
from uumamba.federated.dfedsam import DFedSAM
from uumamba.federated.site_rounds import Site
from uumamba.runtime.errors import UumambaError

RECORDS, REASON = "records.json", "reason.txt"
"""Files that the server writes into the job's folder: the rounds of all sites, or the error that ended the job."""


class SiteError(UumambaError):
    """Error at a site that ended the job at all sites."""


class SiteSetup(Protocol):
    """Data, network and method of each site of a job.

    NVFlare writes the constructor's arguments into the job and constructs the object again at each site. So they must
    be plain values, kept as attributes of the same names. The module travels in the job.
    """

    def build(self, name: str) -> tuple[nn.Module, Client, DFedSAM]:
        """Return network, client and method; the client has the site's name."""
        ...

    def finish(self, site: Site, folder: Path) -> None:
        """Store the result, such as ``site.model()``, in a folder of the site."""
        ...
