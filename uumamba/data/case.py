"""Cases, and the manifest that lists them.

The manifest is a superset of the Medical Segmentation Decathlon's ``dataset.json``.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from uumamba.data.stored_json import read_json
from uumamba.runtime.errors import require
from uumamba.runtime.files import write_json

Split = Literal["training", "test"]
MANIFEST_NAME = "dataset.json"
MAX_LABEL_VALUE, MAX_STRUCTURES = 65535, 254
IGNORED = 255
"""Class of ignored voxels in prepared labels."""
_LABEL_KEYS = ("ignore_value", "regions", "regions_class_order", "colours")
_COLOUR = re.compile("#[0-9a-fA-F]{6}")
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control, format and surrogate characters, and of separators of lines and paragraphs."""


@dataclass(frozen=True)
class Case:
    """Image with an optional label.

    Args:
        case_id: unique in the manifest; names every file made from the case (ACDC: ``patient001_frame01``).
        patient_id: the patient; folds and statistics never separate the cases of one patient.
        domain: centre, vendor or data set, for domain generalization.
        image: path of the image; several paths are channels in this order. A file may also hold all channels, as in the
            Decathlon.
        label: path of the ground truth, or None.
        fold: validation fold, 0 to 4, of a training case; None for test cases.
        phase: ``"ED"`` or ``"ES"`` if known.
        group: diagnosis if known.
        split: ``"training"``, or ``"test"`` for a case that is never used for training or tuning.
    """

    case_id: str
    patient_id: str
    domain: str
    image: Path | tuple[Path, ...]
    label: Path | None = None
    fold: int | None = None
    phase: str | None = None
    group: str | None = None
    split: Split = "training"

    # Strict: with the text "0" as fold of a case, fold 0 would have no validation cases.
    __pydantic_config__ = ConfigDict(strict=True)

    @property
    def images(self) -> tuple[Path, ...]:
        """Paths of the channels, or the one path of all."""
        return self.image if isinstance(self.image, tuple) else (self.image,)

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths of the channels, then of the label if there is one."""
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True)
class Manifest:
    """Structures and cases of a data set.

    ``write`` stores paths relative to the manifest's folder, so that a moved folder and
    ``monai.data.load_decathlon_datalist`` work; ``read`` returns absolute paths. Equal data sets give equal bytes.

    Args:
        name: name of the data set.
        modality: as in the Decathlon's lists, such as ``"cine MRI"``; of several channels one name each.
        structures: label value of each structure, without background (0).
        cases: the cases; they are sorted by ``case_id``.
        ignore_value: label value of voxels that are in no loss, no sample and no score; None if there are none.
        regions: label values of each region, for structures that overlap or contain each other; a network then predicts
            each region on its own. Empty for structures that are labels themselves.
        regions_class_order: label value that each region paints into a predicted label map, in the order of
            ``regions``; a later region paints over an earlier one.
        colours: colour of a structure or region, such as ``"#d62728"``.
        reference: citation requested by the authors of the data.
        licence: licence of the data.
        extra: further keys of the file, unchanged.

    Raises:
        UsageError: two cases share a ``case_id``, a ``case_id`` is not a plain file name, a structure's value is not an
            integer from 1 to 65535, two structures have one value, a region or colour is of no structure, painted
            regions would not be the regions again, or a name holds characters that are not shown, such as a newline.
    """

    name: str
    modality: str | tuple[str, ...]
    structures: Mapping[str, int]
    cases: tuple[Case, ...]
    reference: str = ""
    licence: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    ignore_value: int | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shown(self.name, "name")
        object.__setattr__(self, "cases", tuple(sorted(self.cases, key=lambda case: case.case_id)))
        for case_id, count in Counter(case.case_id for case in self.cases).items():
            require(count == 1, f"{self.name}: case_id", got=case_id, expected=f"one case of this name, not {count}")
            require(
                case_id == Path(case_id).name and case_id not in {"", ".", ".."},
                f"{self.name}: case_id",
                got=case_id,
                expected="a plain file name",
            )
        for case in self.cases:
            for key in ("case_id", "patient_id", "domain", "phase", "group"):
                check_shown(getattr(case, key) or "", f"{self.name}: {key}")
        for channel in self.channels:
            check_shown(channel, f"{self.name}: modality")
        check_label_values(self)

    @property
    def channels(self) -> tuple[str, ...]:
        """Name of each channel of an image."""
        return (self.modality,) if isinstance(self.modality, str) else self.modality

    @property
    def targets(self) -> dict[str, tuple[int, ...]]:
        """Label values of each region, or else of each structure.

        These are predicted and scored.
        """
        return dict(self.regions) or {name: (value,) for name, value in self.structures.items()}

    @property
    def classes(self) -> dict[str, int]:
        """Class of each structure in prepared labels; see :func:`number_classes`."""
        return number_classes(self.structures)

    def select(
        self,
        *,
        split: Split | None = None,
        fold: int | None = None,
        without_fold: int | None = None,
        domains: Collection[str] | None = None,
        case_ids: Collection[str] | None = None,
    ) -> tuple[Case, ...]:
        """Select cases by split, fold, domain or name.

        ``fold`` selects a fold's validation cases, ``without_fold`` the fold's training cases.
        """
        return tuple(
            case
            for case in self.cases
            if (split is None or case.split == split)
            and (fold is None or case.fold == fold)
            and (without_fold is None or case.fold != without_fold)
            and (domains is None or case.domain in domains)
            and (case_ids is None or case.case_id in case_ids)
        )

    def by_id(self, case_id: str) -> Case:
        """Return the case with a given id.

        Raises:
            UsageError: the manifest does not list the case.
        """
        found = [case for case in self.cases if case.case_id == case_id]
        require(found, "case_id", got=case_id, expected=f"one of the {len(self.cases)} cases of {self.name}")
        return found[0]

    def write(self, path: Path | str) -> None:
        """Write ``dataset.json`` atomically."""
        folder = Path(path).parent.resolve()
        listed = {
            split: [_to_entry(case, folder) for case in self.select(split=split)] for split in ("training", "test")
        }
        head = {
            "name": self.name,
            "reference": self.reference,
            "licence": self.licence,
            "modality": {str(index): name for index, name in enumerate(self.channels)},
            "labels": {"0": "background"} | {str(value): name for name, value in self.structures.items()},
            **{key: getattr(self, key) for key in _LABEL_KEYS if getattr(self, key) not in (None, {}, ())},
            "numTraining": len(listed["training"]),
            "numTest": len(listed["test"]),
        }
        write_json(path, head | dict(self.extra) | listed)

    @classmethod
    def read(cls, path: Path | str) -> "Manifest":
        """Read a ``dataset.json``, or the one in a folder.

        Raises:
            UsageError: the file is missing or no manifest.
        """
        path = Path(path)
        path = path / MANIFEST_NAME if path.is_dir() else path
        stored = read_json(
            path,
            TypeAdapter(_ManifestFile),
            expected="a data set manifest",
            fix="give a manifest or its folder, or write one with `uumamba prepare`",
        )
        listed: tuple[tuple[Split, tuple[Case, ...]], ...] = (("training", stored.training), ("test", stored.test))
        return cls(
            name=stored.name,
            modality=stored.find_channels(),
            structures={name: value for value, name in stored.labels.items() if value != 0},
            cases=tuple(_absolute(case, path.parent.resolve(), split) for split, cases in listed for case in cases),
            reference=stored.reference,
            licence=stored.licence,
            extra={
                key: value for key, value in (stored.model_extra or {}).items() if key not in ("numTraining", "numTest")
            },
            **{key: getattr(stored, key) for key in _LABEL_KEYS},
        )


def number_classes(structures: Mapping[str, int]) -> dict[str, int]:
    """Number structures from 1 on, in the order of their label values.

    Networks, prepared labels and probabilities have these classes; label maps in files have the label values.

    Example:
        >>> number_classes({"LV": 500, "RV": 3})
        {'LV': 2, 'RV': 1}
    """
    ordered = sorted(structures.values())
    return {name: 1 + ordered.index(value) for name, value in structures.items()}


def check_shown(text: str, key: str) -> None:
    r"""Raise if a name holds characters that are not shown.

    Newlines, terminal escapes, invisible characters and marks of the text direction make one name look like another,
    or like several.

    Args:
        text: the name.
        key: the name's key, for the error.

    Raises:
        UsageError: the name holds such a character; ``got`` is the escaped text.

    Example:
        >>> check_shown("patient001_frame01", "case_id")
        >>> check_shown("two" + chr(9) + "words", "case_id")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: case_id: got 'two\twords', expected only shown characters. Fix: remove '\t'.
    """
    hidden = next((each for each in text if unicodedata.category(each) in HIDDEN), None)
    require(
        hidden is None,
        key,
        got=repr(text),
        expected="only shown characters",
        fix=f"remove {hidden!r}",
    )


def check_label_values(manifest: Manifest) -> None:
    """Raise if a manifest's structures, regions or colours do not fit.

    Raises:
        UsageError: see :class:`Manifest`.
    """
    name, values = manifest.name, [*manifest.structures.values()]
    ignored = manifest.ignore_value
    for key, value in [*manifest.structures.items(), *([] if ignored is None else [("ignore_value", ignored)])]:
        check_shown(key, f"{name}: labels")
        require(
            isinstance(value, int) and 1 <= value <= MAX_LABEL_VALUE,
            f"{name}: labels.{key}",
            got=value,
            expected=f"an integer from 1 to {MAX_LABEL_VALUE}",
        )
    require(
        len(values) == len({*values}) <= MAX_STRUCTURES,
        f"{name}: labels",
        got=values,
        expected=f"up to {MAX_STRUCTURES} structures, each with its own value",
    )
    require(ignored not in values, f"{name}: ignore_value", got=ignored, expected="the value of no structure")
    for region, parts in manifest.regions.items():
        check_shown(region, f"{name}: regions")
        require(
            parts and {*parts} <= {*values},
            f"{name}: regions.{region}",
            got=list(parts),
            expected=f"label values of structures: {', '.join(map(str, values))}",
        )
    order = manifest.regions_class_order
    require(
        len(order) == len({*order}) == len(manifest.regions) and {*order} <= {*values},
        f"{name}: regions_class_order",
        got=list(order),
        expected=f"one label value for each of the {len(manifest.regions)} regions, each once",
        fix="list the value that each region paints, in the order of the regions",
    )
    _check_painting(manifest)
    for key, colour in manifest.colours.items():
        require(
            key in {*manifest.structures, *manifest.regions} and _COLOUR.fullmatch(colour),
            f"{name}: colours.{key}",
            got=colour,
            expected="the colour of a structure or region, such as #d62728",
        )


def _check_painting(manifest: Manifest) -> None:
    """Raise if painted regions would not be the regions again.

    Where every region is predicted correctly, the painted value must be in the same regions as the true one.
    """
    regions = manifest.regions.items()
    for name, value in manifest.structures.items():
        true = [region for region, parts in regions if value in parts]
        painted = dict(zip(manifest.regions, manifest.regions_class_order, strict=True))[true[-1]] if true else 0
        found = [region for region, parts in regions if painted in parts]
        require(
            found == true,
            f"{manifest.name}: regions_class_order",
            got=list(manifest.regions_class_order),
            expected=f"where {name} is, a last value that is in {', '.join(true)} and no other region, not {painted}",
            fix="list outer regions before inner ones, and give each overlap a region of its own",
        )


class _ManifestFile(BaseModel):
    """Content of ``dataset.json``."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str
    modality: dict[int, str]
    labels: dict[int, str]
    ignore_value: int | None = None
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()
    colours: dict[str, str] = Field(default_factory=dict)
    reference: str = ""
    licence: str = ""
    training: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()

    def find_channels(self) -> str | tuple[str, ...]:
        """Return the name of the only channel, or all names in order."""
        require(
            self.modality and [*self.modality] == [*range(len(self.modality))],
            f"{self.name}: modality",
            got=", ".join(map(str, self.modality)) or "nothing",
            expected="the channels 0, 1, ... in order",
        )
        names = tuple(self.modality.values())
        return names if len(names) > 1 else names[0]


def _to_entry(case: Case, folder: Path) -> dict[str, Any]:
    entry = {
        "image": _relative(case.image, folder)
        if isinstance(case.image, Path)
        else [_relative(path, folder) for path in case.image],
        "label": None if case.label is None else _relative(case.label, folder),
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "domain": case.domain,
        "fold": case.fold,
        "phase": case.phase,
        "group": case.group,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder)).as_posix()


def _absolute(case: Case, folder: Path, split: Split) -> Case:
    def find(path: Path) -> Path:
        return Path(os.path.normpath(folder / path))

    return replace(
        case,
        image=find(case.image) if isinstance(case.image, Path) else tuple(map(find, case.image)),
        label=find(case.label) if case.label else None,
        split=split,
    )
