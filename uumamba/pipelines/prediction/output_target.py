"""Place of the outputs: a folder, or one named label map."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, get_args

from uumamba.data.case_files import ImagePath, image_suffix
from uumamba.data.formats.png import PNG_SUFFIXES
from uumamba.pipelines.prediction.label_files import PROBABILITIES_NAME, LabelFormat, name_label_map
from uumamba.runtime.errors import require
from uumamba.runtime.files import make_folder, remove_file, whole_file

_FORMATS: tuple[LabelFormat, ...] = get_args(LabelFormat)


@dataclass(frozen=True)
class OutputTarget:
    """Folder for all outputs, or the file of one case's label map.

    With a named file, everything is made in a hidden folder next to it, and only the label map (and requested
    probabilities) are kept.

    Attributes:
        path: the folder or file.
        label_format: format of label maps; None is that of a folder by default.
        is_file: one named file.
    """

    path: Path
    label_format: LabelFormat | None
    is_file: bool

    @classmethod
    def parse(cls, out: Path | str, label_format: LabelFormat | None = None) -> Self:
        """Read ``--out`` and ``--format``.

        Raises:
            UsageError: a file has the suffix of another format or of none, or a format is unknown.

        Example:
            >>> OutputTarget.parse("masks/heart.mha").label_format
            'mha'
        """
        path = Path(out)
        known = ", ".join(_FORMATS)
        require(label_format in (None, *_FORMATS), "--format", got=label_format, expected=f"one of {known}")
        suffix = image_suffix(path).lower()
        if not suffix or path.is_dir():
            return cls(path, label_format, is_file=False)
        is_png = suffix in PNG_SUFFIXES
        found = next((each for each in _FORMATS if suffix == f".{each}"), None)
        require(found or is_png, "--out", got=out, expected=f"a folder, or a file that ends in {known} or png")
        require(
            label_format in (None, found),
            "--format",
            got=label_format,
            expected=f"the format of --out {path.name}",
            fix="leave out --format",
        )
        return cls(path, found, is_file=True)

    def check_cases(self, cases: Mapping[str, ImagePath], *, options: Mapping[str, bool]) -> None:
        """Raise unless a named file is for exactly one case.

        Args:
            cases: images by case id.
            options: options that need a folder, given or not.
        """
        for option, is_given in options.items() if self.is_file else ():
            require(not is_given, option, got=f"--out {self.path}", expected="a folder", fix="give a folder as --out")
        require(
            not self.is_file or len(cases) == 1,
            "--out",
            got=f"the file {self.path} for {len(cases)} cases",
            expected="a folder, or one case",
        )

    def find_label_map(self, case_id: str, image: ImagePath) -> Path:
        """Return the path of a case's label map."""
        return self.path if self.is_file else self.path / self.name_label_map(case_id, image)

    def name_label_map(self, case_id: str, image: ImagePath) -> str:
        """Return the name of a case's label map while it is made."""
        return self.path.name if self.is_file else name_label_map(case_id, image, self.label_format)

    @contextmanager
    def open_folder(self) -> Iterator[Path]:
        """Yield the folder that gets the outputs.

        At the end, a named file is moved to its place. A named file of an earlier call is removed first, so that a
        failed case leaves none.

        Raises:
            UsageError: the folder is not writable.
        """
        if not self.is_file:
            yield make_folder(self.path)
            return
        parent = make_folder(self.path.parent)
        folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
        try:
            remove_file(self.path)
            yield folder
            for made, kept in self._list_kept(folder):
                with whole_file(kept) as unfinished:
                    os.replace(made, unfinished)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _list_kept(self, folder: Path) -> Iterable[tuple[Path, Path]]:
        if (folder / self.path.name).is_file():
            yield folder / self.path.name, self.path
        stem, place = self.path.name.removesuffix(image_suffix(self.path)), folder / PROBABILITIES_NAME
        for made in place.glob("*.nii.gz"):
            yield made, self.path.with_name(f"{stem}.probabilities.nii.gz")
        for made in place.glob("*/frame_*.nii.gz"):
            yield made, self.path.with_name(f"{stem}.probabilities.{made.name}")
