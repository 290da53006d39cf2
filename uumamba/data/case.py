"""Cases, and the manifest that lists them.

The manifest is a superset of the Medical Segmentation Decathlon's ``dataset.json``.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from uumamba.data.label_scheme import LabelScheme, check_label_values, number_classes
from uumamba.data.shown_text import check_shown
from uumamba.data.stored_json import read_json
from uumamba.runtime.errors import require
from uumamba.runtime.files import write_json

Split = Literal["training", "test"]
MANIFEST_NAME = "dataset.json"
_LABEL_KEYS = ("ignore_value", "regions", "regions_class_order", "colours")


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
        check_label_values(self.labels, self.name)

    @property
    def channels(self) -> tuple[str, ...]:
        """Name of each channel of an image."""
        return (self.modality,) if isinstance(self.modality, str) else self.modality

    @property
    def labels(self) -> LabelScheme:
        """Structures, regions, ignored voxels and colours."""
        return LabelScheme(self.structures, self.ignore_value, self.regions, self.regions_class_order, self.colours)

    @property
    def targets(self) -> dict[str, tuple[int, ...]]:
        """Label values of each region, or else of each structure.

        These are predicted and scored.
        """
        return self.labels.targets

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
