"""Tiny data sets in the layouts of the public ones."""

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from openpyxl import Workbook

from data_prep import read_acdc, read_aorta, read_imagecas, read_mnms
from data_prep.aorta import STRUCTURES

SHAPE = (8, 7, 24)
AFFINE = np.diag([-1.25, -1.25, 9.6, 1.0])
HEART, CORONARY = {"RV": 1, "MYO": 2, "LV": 3}, {"coronary": 1}
MNMS_SHEET = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


def save_nifti(path, voxels, affine=AFFINE, *, slope=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(slope, None if slope is None else 0)
    nib.save(image, path)


def save_mha(path, voxels, affine=AFFINE):
    nifti = path.with_suffix(".nii")
    save_nifti(nifti, voxels, affine)
    SimpleITK.WriteImage(SimpleITK.ReadImage(nifti), path)
    nifti.unlink()


def draw_image(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(-500, 500, shape).astype(np.int16)


def draw_label(highest, shape=SHAPE):
    """Draw n voxels of each value n up to the highest."""
    label = np.zeros(shape, np.uint8)
    for value in range(1, highest + 1):
        label[:value, 2, value] = value
    return label


class Layout:
    """Data set with training patients 1, 2, ... and one test patient.

    ``write_patient`` adds a patient, ``finish`` the sheet of all patients.
    """

    read_raw: object
    save = staticmethod(save_nifti)
    test_number = 99
    cases_per_file = 1

    def patient_id(self, number):
        return self.patient.format(number)

    def write(self, raw, count):
        for number in (*range(1, count + 1), self.test_number):
            self.write_patient(raw, number)
        self.finish(raw, count)

    def write_patient(self, raw, number):
        self.write_image(raw, number)
        self.write_label(raw, number)

    def write_image(self, raw, number, **changed):
        for path in self.files(raw, number)["image"]:
            self.save(path, draw_image(number, **changed))

    def write_label(self, raw, number, *, affine=AFFINE, **changed):
        for path in self.files(raw, number)["label"]:
            self.save(path, draw_label(self.highest, **changed), affine)

    def finish(self, raw, count): ...

    def read(self, raw, scratch):
        return type(self).read_raw(raw)


class Acdc(Layout):
    name, read_raw, highest, patient = "acdc", read_acdc, 3, "patient{:03d}"
    structures = HEART

    def files(self, raw, number):
        folder = raw / ("testing" if number == self.test_number else "training") / self.patient_id(number)
        stems = [folder / f"{folder.name}_frame{frame:02d}" for frame in (1, 12)]
        return {"image": [Path(f"{s}.nii.gz") for s in stems], "label": [Path(f"{s}_gt.nii.gz") for s in stems]}

    def write_patient(self, raw, number, *, info=""):
        super().write_patient(raw, number)
        folder = self.files(raw, number)["image"][0].parent
        info = info or f"ED: 1\nES: 12\nGroup: {('DCM', 'NOR')[number % 2]}\n"
        (folder / "Info.cfg").write_bytes(info if isinstance(info, bytes) else info.encode())
        (folder / f"{folder.name}_4d.nii.gz").touch()


class Mnms(Layout):
    name, read_raw, highest, patient = "mnms", read_mnms, 3, "A{}"
    structures = HEART
    ed, es, cases_per_file = 0, 2, 2

    def files(self, raw, number):
        folder = raw / ("Testing" if number == self.test_number else "Training/Labeled") / self.patient_id(number)
        return {
            "image": [folder / f"{folder.name}_sa.nii.gz"],
            "label": [folder / f"{folder.name}_sa_gt.nii.gz"],
        }

    def write_image(self, raw, number, *, shape=SHAPE):
        super().write_image(raw, number, shape=(*shape, 4))

    def write_label(self, raw, number, *, affine=AFFINE, shape=SHAPE):
        """Write a label map that is empty except in the labelled frames."""
        cine = np.zeros((*shape, 4), np.uint8)
        cine[..., [self.ed, self.es]] = draw_label(3, shape)[..., None]
        save_nifti(self.files(raw, number)["label"][0], cine, affine)

    def finish(self, raw, count):
        rows = [(number, "AB"[number % 2]) for number in range(1, count + 1)] + [(self.test_number, "D")]
        write_mnms_sheet(raw, [(self.patient_id(number), vendor, self.ed, self.es) for number, vendor in rows])

    def read(self, raw, scratch):
        return read_mnms(raw, frames=scratch / f"{len([*scratch.glob('[0-9]')])}")


class ImageCas(Layout):
    name, read_raw, highest, patient = "imagecas", read_imagecas, 1, "imagecas{:04d}"
    structures = CORONARY

    def files(self, raw, number):
        shard = raw / ("1-4" if number < 5 else "5-200")
        return {"image": [shard / f"{number}.img.nii.gz"], "label": [shard / f"{number}.label.nii.gz"]}

    def finish(self, raw, count):
        write_split_sheet(raw, dict.fromkeys(range(1, count + 1), "Training") | {self.test_number: "Testing"})


class Aorta(Layout):
    name, read_raw, highest, patient = "aorta", read_aorta, 23, "subject{:03d}"
    structures, save = STRUCTURES, staticmethod(save_mha)

    def files(self, raw, number):
        name = self.patient_id(number)
        return {"image": [raw / "images" / f"{name}_CTA.mha"], "label": [raw / "masks" / f"{name}_label.mha"]}


class CisUnet(Aorta):
    """AortaSeg24 in the layout of CIS-UNet."""

    save = staticmethod(save_nifti)

    def files(self, raw, number):
        stem = raw / f"{number:02d}"
        return {
            "image": [stem / f"Volumes/Subject{number:03d}_CTA.nii.gz"],
            "label": [stem / f"Labels/Subject{number:03d}_Label.nii.gz"],
        }


def write_split_sheet(raw, splits):
    """Write the partition of each case in Split-1 and Split-2."""
    lines = [f"{number},{','.join(given.split())}" for number, given in splits.items()]
    (raw / "imageCAS_data_split.csv").write_text("\n".join(["FileName,Split-1,Split-2", *lines]))


def write_workbook(path, sheets):
    book = Workbook()
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def write_mnms_sheet(raw, rows, *, name=MNMS_SHEET):
    lines = [f"{at},{code},any,{vendor},1,{ed},{es},44,NOR" for at, (code, vendor, ed, es) in enumerate(rows)]
    (raw / name).write_text("\n".join([",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology", *lines]))


def read_all(read, raw, **options):
    """Read a data set without faults."""
    manifest, errors = read(raw, **options)
    assert errors == []
    return manifest


def case_ids(manifest, **which):
    return [case.case_id for case in manifest.select(**which)]


def file_bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
