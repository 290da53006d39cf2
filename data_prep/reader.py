"""Reader of a public data set, with its name and folder layout."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uumamba.data.case import Manifest
from uumamba.runtime.errors import CaseError

Read = tuple[Manifest, list[CaseError]]


@dataclass(frozen=True)
class Reader:
    r"""Reader of one public data set.

    A line of ``uumamba/config/registry.py`` gives it a name for configurations.

    Attributes:
        read: function of the raw folder; returns the manifest of the complete cases, and an error for each other case.
        manifest_name: name of the data set in its manifest.
        layout: pattern of paths in the raw folder; one path that matches identifies the data set. A group ``kind``
            distinguishes scans and label maps that share a folder.
        official_split: the manifest's ``official_split``, if the owner publishes several.
        vessels: structures that are scored as vessels.
        cuts_frames: whether the raw folder may have cines, whose frames are cut out. Then ``read`` also takes
            ``frames`` (the folder to cut into), ``cut`` (False only lists the frames) and ``advance``.
        reads_any: whether a folder of any name and layout is read. Then ``read`` also takes the options of a
            configuration's ``dataset``, and no path identifies the data set.

    Example:
        >>> from uumamba.data.case import Case
        >>> def read_toy(raw):
        ...     return Manifest("Toy", "CT", {"LV": 1}, (Case("a", "a", "toy", raw / "a_ct.nii"),)), []
        >>> reader = Reader(read_toy, "Toy", re.compile(r"[a-z]_(?P<kind>ct|gt)\.nii"))
        >>> manifest, errors = reader(Path("raw"))
        >>> sorted(reader.find_kinds(["a_ct.nii", "a_gt.nii", "notes.txt"]))
        ['ct', 'gt']
    """

    read: Callable[..., Read]
    manifest_name: str
    layout: re.Pattern[str]
    official_split: str | None = None
    vessels: Collection[str] = ()
    cuts_frames: bool = False
    reads_any: bool = False

    def __call__(self, raw: Path | str, **options: Any) -> Read:
        """Read a raw folder; ``options`` are those of ``cuts_frames`` or ``reads_any``."""
        return self.read(raw, **options)

    def find_kinds(self, paths: Iterable[str]) -> set[str]:
        """Return the kinds of files among paths that match the layout.

        A kind is the text of the group ``kind`` in lower case, and empty without such a group.
        """
        matches = map(self.layout.fullmatch, paths)
        return {match.groupdict("").get("kind", "").lower() for match in matches if match}
