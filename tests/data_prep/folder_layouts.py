"""Any folder of scans in each common layout, made from the same files."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.folder.folder_reader import read_folder
from uumamba.data.case import Case, Manifest

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}


@dataclass
class Source:
    """Files of one case; an absent file is not copied."""

    case_id: str
    images: Sequence[Path]
    label: Path


class FolderLayout:
    """Layout with a file for each channel; ``options`` are those of the reader."""

    name: str
    channels_per_file = False

    def __init__(self, channels=("MRI",), structures=STRUCTURES, ending=".nii.gz"):
        self.channels, self.structures, self.ending = tuple(channels), dict(structures), ending

    def options(self):
        return {}

    def image(self, raw, case_id, channel=0):
        return raw / "images" / f"{case_id}_{channel:04d}{self.ending}"

    def label(self, raw, case_id):
        return raw / "labels" / f"{case_id}{self.ending}"

    def write(self, raw, sources):
        for source in sources:
            count = 1 if self.channels_per_file else len(self.channels)
            for channel, path in enumerate(source.images[:count]):
                place(path, self.image(raw, source.case_id, channel))
            place(source.label, self.label(raw, source.case_id))
        self.describe(raw, [source.case_id for source in sources])

    def images_of(self, raw, case_id):
        count = 1 if self.channels_per_file else len(self.channels)
        return [self.image(raw, case_id, channel) for channel in range(count)]

    def describe(self, raw, case_ids): ...

    def read(self, raw, **changed):
        return read_folder(raw, **self.options() | changed)

    def numbered(self):
        return {str(index): name for index, name in enumerate(self.channels)}


class NnUnet(FolderLayout):
    name = "nnunet"

    def image(self, raw, case_id, channel=0):
        return raw / "imagesTr" / f"{case_id}_{channel:04d}{self.ending}"

    def label(self, raw, case_id):
        return raw / "labelsTr" / f"{case_id}{self.ending}"

    def describe(self, raw, case_ids):
        labels = {"background": 0, **self.structures}
        write_json(
            raw,
            {
                "channel_names": self.numbered(),
                "labels": labels,
                "numTraining": len(case_ids),
                "file_ending": self.ending,
            },
        )


class NnUnetV1(NnUnet):
    """The older file: modality, names by value, and a list of the cases without channels."""

    def describe(self, raw, case_ids):
        entries = [{"image": f"./imagesTr/{each}.nii.gz", "label": f"./labelsTr/{each}.nii.gz"} for each in case_ids]
        write_json(
            raw,
            {"modality": self.numbered(), "labels": names_by_value(self.structures), "training": entries, "test": []},
        )


class Decathlon(FolderLayout):
    name, channels_per_file = "decathlon", True

    def image(self, raw, case_id, channel=0):
        return raw / "imagesTr" / f"{case_id}{self.ending}"

    def label(self, raw, case_id):
        return raw / "labelsTr" / f"{case_id}{self.ending}"

    def entry(self, raw, case_id):
        image, label = (
            path.relative_to(raw).as_posix() for path in (self.image(raw, case_id), self.label(raw, case_id))
        )
        return {"image": f"./{image}", "label": f"./{label}"}

    def describe(self, raw, case_ids):
        entries = [self.entry(raw, each) for each in case_ids]
        about = {"name": "Heart", "licence": "CC-BY-SA 4.0", "modality": self.numbered()}
        write_json(raw, about | {"labels": names_by_value(self.structures), "training": entries, "test": []})


class Datalist(FolderLayout):
    name = "datalist"

    def options(self):
        return {"structures": self.structures}

    def entry(self, raw, case_id):
        images = [path.relative_to(raw).as_posix() for path in self.images_of(raw, case_id)]
        label = self.label(raw, case_id).relative_to(raw).as_posix()
        return {"image": images if len(images) > 1 else images[0], "label": label}

    def describe(self, raw, case_ids):
        write_json(raw, {"training": [self.entry(raw, each) for each in case_ids]}, name="folds.json")


class Pairs(FolderLayout):
    name = "pairs"

    def options(self):
        globs = {name: f"images/*_{index:04d}{self.ending}" for index, name in enumerate(self.channels)}
        images = globs if len(globs) > 1 else next(iter(globs.values()))
        return {"images": images, "labels": f"labels/*{self.ending}", "structures": self.structures}


class Csv(FolderLayout):
    name = "csv"

    def options(self):
        return {"structures": self.structures}

    def rows(self, raw, case_ids):
        heading = [
            "Case",
            *([f"Image_{name}" for name in self.channels] if len(self.channels) > 1 else ["Image"]),
            "Label",
        ]
        rows = [[each, *self.images_of(raw, each), self.label(raw, each)] for each in case_ids]
        relative = [[each, *(path.relative_to(raw).as_posix() for path in paths)] for each, *paths in rows]
        return [heading, *relative]

    def describe(self, raw, case_ids):
        write_csv(raw, self.rows(raw, case_ids))


class OwnManifest(FolderLayout):
    name = "manifest"

    def describe(self, raw, case_ids):
        cases = []
        for each in case_ids:
            images = tuple(self.images_of(raw, each))
            image = images if len(images) > 1 else images[0]
            cases.append(Case(each, each, "here", image, self.label(raw, each)))
        modality = self.channels if len(self.channels) > 1 else self.channels[0]
        Manifest("own", modality, self.structures, tuple(cases)).write(raw / "dataset.json")


LAYOUTS = (NnUnet, NnUnetV1, Decathlon, Datalist, Pairs, Csv, OwnManifest)


def write_json(raw, content, *, name="dataset.json"):
    raw.mkdir(parents=True, exist_ok=True)
    (raw / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def write_csv(raw, rows, *, name="cases.csv"):
    with (raw / name).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def names_by_value(structures: Mapping[str, int]):
    return {"0": "background", **{str(value): name for name, value in structures.items()}}


def touch_sources(folder, case_ids, channels=1):
    """Make empty files for the layouts whose scans are not opened."""
    folder.mkdir(exist_ok=True)
    sources = []
    for each in case_ids:
        images = [folder / f"{each}_{channel}.nii.gz" for channel in range(channels)]
        sources.append(Source(each, images, folder / f"{each}_gt.nii.gz"))
        for path in (*images, sources[-1].label):
            path.touch()
    return sources


def place(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
