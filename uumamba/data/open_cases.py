"""Prepared cases that stay open: opening one costs more than reading a patch of it."""

from collections import OrderedDict

from uumamba.data.prepared import PreparedCase, PreparedFolder

MOST_OPEN = 200
"""Each holds two files open, of which a process may usually have 1024."""


class OpenCases:
    """The cases of a folder, opened when first asked for; of more than ``most`` the one longest unused is closed.

    What is asked for is the same as ever; a process that it is copied into opens its own.

    Args:
        folder: of prepared cases.
        most: that are open at a time.
    """

    def __init__(self, folder: PreparedFolder, *, most: int = MOST_OPEN) -> None:
        self.folder = folder
        self.most = most
        self._open: OrderedDict[str, PreparedCase] = OrderedDict()

    def __call__(self, case_id: str) -> PreparedCase:
        """The case.

        Raises:
            UsageError: the manifest does not list it.
            CaseError: its files are missing or damaged.
        """
        found = self._open.pop(case_id, None) or self.folder.case(case_id)
        self._open[case_id] = found
        if len(self._open) > self.most:
            self._open.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, object]:
        """Without the open files: pickled, a mapped array would be copied whole."""
        return self.__dict__ | {"_open": OrderedDict()}
