"""Cases and the manifest that lists them: a superset of the Medical Segmentation Decathlon's ``dataset.json``."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import write_json

Split = Literal["training", "test"]
MANIFEST_NAME = "dataset.json"
_OPTIONAL_FIELDS = ("fold", "phase", "group")


@dataclass(frozen=True)
class Case:
    """One image with, usually, its label.

    Args:
        case_id: unique in its manifest; names every file made from the case (ACDC: ``patient001_frame01``).
        patient_id: the unit that folds and statistics never split.
        domain: centre, vendor or data set, for domain generalization.
        image: path of the image.
        label: path of the ground truth, or None.
        fold: the validation fold, 0 to 4, of a training case; None for test cases.
        phase: ``"ED"`` or ``"ES"`` where known.
        group: diagnosis where known.
        split: ``"training"``, or ``"test"``: never trained or tuned on.
    """

    case_id: str
    patient_id: str
    domain: str
    image: Path
    label: Path | None = None
    fold: int | None = None
    phase: str | None = None
    group: str | None = None
    split: Split = "training"


@dataclass(frozen=True)
class Manifest:
    """A data set: its structures and its cases.

    ``write`` stores paths relative to the manifest's folder, so that ``monai.data.load_decathlon_datalist`` and a moved
    folder both work; ``read`` gives absolute paths. Equal data sets give equal bytes.

    Args:
        name: the data set's name.
        modality: as in the Decathlon's lists, ``"cine MRI"`` for instance.
        structures: label value of each structure, background (0) left out.
        cases: sorted by ``case_id`` on construction.
        reference: citation that the data ask for.
        licence: their licence.

    Raises:
        UsageError: two cases share a ``case_id``, a ``case_id`` is not a plain file name, or a structure's value is not
            an integer from 1 to 255.
    """

    name: str
    modality: str
    structures: Mapping[str, int]
    cases: tuple[Case, ...]
    reference: str = ""
    licence: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", tuple(sorted(self.cases, key=lambda case: case.case_id)))
        _check_case_ids(self.name, self.cases)
        _check_structures(self.name, self.structures)

    def select(
        self,
        *,
        split: Split | None = None,
        fold: int | None = None,
        without_fold: int | None = None,
        domains: Collection[str] | None = None,
        case_ids: Collection[str] | None = None,
    ) -> tuple[Case, ...]:
        """Cases of a split, of a fold (validation) or of every other fold (training), of some domains, or by name."""
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
        """The case of that id.

        Raises:
            UsageError: there is none.
        """
        for case in self.cases:
            if case.case_id == case_id:
                return case
        raise UsageError(f"{self.name} has no case {case_id}; its dataset.json lists {len(self.cases)} others.")

    def write(self, path: Path | str) -> None:
        """Write ``dataset.json``, whole or absent."""
        path = Path(path)
        folder = path.parent.resolve()
        listed = {
            split: [_to_entry(case, folder) for case in self.select(split=split)] for split in ("training", "test")
        }
        labels = {"0": "background"} | {str(value): name for name, value in self.structures.items()}
        head = {
            "name": self.name,
            "reference": self.reference,
            "licence": self.licence,
            "modality": {"0": self.modality},
            "labels": labels,
            "numTraining": len(listed["training"]),
            "numTest": len(listed["test"]),
        }
        write_json(path, head | dict(self.extra) | listed)

    @classmethod
    def read(cls, path: Path | str) -> "Manifest":
        """Read a ``dataset.json``, or the one in a folder.

        Raises:
            UsageError: the file is missing or is not such a list.
        """
        path = Path(path)
        path = path / MANIFEST_NAME if path.is_dir() else path
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            folder = path.parent.resolve()
            cases = tuple(
                _from_entry(entry, folder, split) for split in ("training", "test") for entry in stored.get(split, [])
            )
            structures = {name: value for key, name in stored["labels"].items() if (value := _label_value(key)) != 0}
            known = {"name", "reference", "licence", "modality", "labels", "numTraining", "numTest", "training", "test"}
            return cls(
                name=stored["name"],
                modality=stored["modality"]["0"],
                structures=structures,
                cases=cases,
                reference=stored.get("reference", ""),
                licence=stored.get("licence", ""),
                extra={key: value for key, value in stored.items() if key not in known},
            )
        except FileNotFoundError:
            raise UsageError(f"There is no manifest at {path}; `uumamba prepare` writes one.") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}); give a manifest or its folder.") from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path} is not a data set manifest ({type(error).__name__}: {error}); "
                "write it anew with `uumamba prepare`."
            ) from None


def _check_case_ids(name: str, cases: Iterable[Case]) -> None:
    counts = Counter(case.case_id for case in cases)
    for case_id, count in counts.items():
        if count > 1:
            raise UsageError(f"{name} lists the case {case_id} {count} times; case ids must be unique.")
        if case_id != Path(case_id).name or case_id in {"", ".", ".."}:
            raise UsageError(f"{name} lists the case id {case_id!r}, which is no plain file name; rename the case.")


def _check_structures(name: str, structures: Mapping[str, int]) -> None:
    for structure, value in structures.items():
        if not (isinstance(value, int) and 1 <= value <= 255):
            raise UsageError(f"{name}: structures have the values 1 to 255, found {structure} {value}; correct it.")


def _label_value(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise TypeError(f"labels must be keyed by numbers, found {key!r}") from None


def _to_entry(case: Case, folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": _relative(case.image, folder)}
    if case.label is not None:
        entry["label"] = _relative(case.label, folder)
    entry |= {"case_id": case.case_id, "patient_id": case.patient_id, "domain": case.domain}
    return entry | {name: getattr(case, name) for name in _OPTIONAL_FIELDS if getattr(case, name) is not None}


def _from_entry(entry: Mapping[str, Any], folder: Path, split: Split) -> Case:
    _check_types(entry)
    label = entry.get("label")
    return Case(
        case_id=entry["case_id"],
        patient_id=entry["patient_id"],
        domain=entry["domain"],
        image=Path(os.path.normpath(folder / entry["image"])),
        label=None if label is None else Path(os.path.normpath(folder / label)),
        split=split,
        **{name: entry.get(name) for name in _OPTIONAL_FIELDS},
    )


def _check_types(entry: Mapping[str, Any]) -> None:
    """A fold that is the text "0" would be no case's fold, and the run would validate on nothing."""
    given = [name for name in ("label", *_OPTIONAL_FIELDS) if entry.get(name) is not None]
    for name in ("case_id", "patient_id", "domain", "image", *given):
        kind, value = (int if name == "fold" else str), entry[name]
        if type(value) is not kind:
            raise TypeError(f"{name} must be {kind.__name__}, found {value!r}")


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder)).as_posix()
