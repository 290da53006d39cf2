"""Data set, its split by domain, and preprocessing."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from uumamba.config.base import Config
from uumamba.config.bind import Part, PartOf, check_name
from uumamba.data.recipe import Normalisation, PreprocessRecipe, choose_normalisation
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegativeInt, Positive, PositiveInt

OF_THE_SPLIT = ("name", "domains", "exclude_patients")
"""Keys that are no options of a reader."""
ANY_FOLDER = "folder"
"""Name of the reader of any folder."""


def _check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    is_valid = names and len(set(names)) == len(names) and all(names)
    require(is_valid, "", got=names, expected="one or more domains, each once")
    return names


def _check_name(name: str) -> str:
    require(name, "", got=name, expected="a domain")
    return name


Names = Annotated[tuple[str, ...], AfterValidator(_check_names)]


class DomainsConfig(Config):
    """Domains (vendors, centres) for training and for validation.

    ``{train: [A], validate: [B]}``; with only one of the two keys, the other one gets all other domains, and
    ``{leave_out: B}`` is short for ``{validate: [B]}``. A domain under one key contributes all its training cases,
    whatever their fold; a domain under both keys is split by fold, as without this section. Test cases are never used.

    A domain for validation only appears in the curve and selects ``best.safetensors``; the weights that a run
    predicts with, ``last.safetensors``, do not depend on it. CT statistics come from all training cases, including
    the cases of a domain that is left out.

    Args:
        train: domains to train on.
        validate: domains to validate on.
        leave_out: the only domain to validate on; all others are for training.
    """

    train: Names | None = None
    validated: Names | None = Field(None, alias="validate")  # pydantic's models have a method of the key's name
    leave_out: Annotated[str, AfterValidator(_check_name)] | None = None

    @model_validator(mode="after")
    def _check_keys(self) -> "DomainsConfig":
        require(
            (self.train is None and self.validated is None) != (self.leave_out is None),
            "",
            got=self._as_written(),
            expected="train, validate or both, or else leave_out",
            fix="remove the key dataset.domains to train on all domains",
        )
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"train": self.train, "validate": self.validated, "leave_out": self.leave_out}

    def names(self) -> set[str]:
        """Return every domain that the section names."""
        return {*(self.train or ()), *(self.validated or ()), *filter(None, [self.leave_out])}

    def split_domains(self, known: Collection[str]) -> tuple[set[str], set[str]]:
        """Split the known domains into training and validation domains.

        Example:
            >>> train, validate = DomainsConfig(leave_out="B").split_domains({"A", "B", "C"})
            >>> sorted(train), sorted(validate)
            (['A', 'C'], ['B'])
        """
        validated = self.validated if self.leave_out is None else (self.leave_out,)
        if self.train is None:
            return {*known}.difference(validated or ()), {*known}.intersection(validated or ())
        others = {*known}.difference(self.train)
        return {*known}.intersection(self.train), others if validated is None else {*known}.intersection(validated)


class DatasetConfig(Config):
    """Data set's reader with its options, and an optional split by domain.

    All keys except ``name``, ``domains`` and ``exclude_patients`` are options of the data set ``folder``;
    ``docs/reference/scan_folders.md`` describes the layouts. Keys that are not given are not stored.

    Args:
        name: the reader of the raw folder; ``imagecas`` is its Split-1, and ``folder`` reads any common layout.
        domains: domains for training and validation; without them only the fold splits the cases.
        exclude_patients: patients whose cases are used neither for training nor for validation, such as those who
            withdrew their consent.
        layout: ``auto`` recognises the layout by the folder's files; ``datalist`` is MONAI's.
        images: for ``pairs``, a glob within the folder such as ``images/*.nii.gz``, or one for each channel by name.
        labels: for ``pairs``, the glob of the label maps.
        case_list: for ``csv`` and ``datalist``, the file within the folder; null takes the only one.
        structures: label value of each structure, such as ``{liver: 1}``; null takes the names of the layout's file, or
            else names every value in the label maps ``label_1`` and so on.
        ignore_value: label value of voxels that are in no loss and no score; null takes that of the layout's file.
        regions: label values of each region, for overlapping structures; null takes those of the layout's file.
        regions_class_order: label value that each region paints; null takes that of the layout's file.
        colours: colour of a structure or region in the report, such as ``{liver: "#d62728"}``.
        patient: regular expression with one group that finds the patient in a case id; null takes the patients of the
            layout's file, or else each case for a patient.
    """

    name: Annotated[str, AfterValidator(partial(check_name, "dataset"))]
    domains: DomainsConfig | None = None
    exclude_patients: tuple[str, ...] | None = None
    layout: Literal["auto", "nnunet", "decathlon", "datalist", "pairs", "csv", "manifest"] = "auto"
    images: str | Mapping[str, str] | None = None
    labels: str | None = None
    case_list: str | None = None
    structures: Mapping[str, PositiveInt] | None = None
    ignore_value: PositiveInt | None = None
    regions: Mapping[str, tuple[NonNegativeInt, ...]] | None = None
    regions_class_order: tuple[PositiveInt, ...] | None = None
    colours: Mapping[str, str] | None = None
    patient: str | None = None

    @model_validator(mode="after")
    def _check_options(self) -> "DatasetConfig":
        for key, value in self.reader_options().items():
            expected = f"no value with the data set {self.name}"
            require(self.name == ANY_FOLDER, key, got=value, expected=expected, fix=f"set dataset.name={ANY_FOLDER}")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys with defaults; older configurations lack them."""
        given = {"name", "domains", *self.reader_options()} | ({"exclude_patients"} if self.exclude_patients else set())
        return {key: value for key, value in dump(self).items() if key in given}

    def reader_options(self) -> dict[str, Any]:
        """Return the given options of the reader of any folder."""
        fields = type(self).model_fields.items()
        values = {key: (getattr(self, key), field.default) for key, field in fields if key not in OF_THE_SPLIT}
        return {key: value for key, (value, unset) in values.items() if value != unset}


class PreprocessConfig(Config):
    """Resampling and normalisation of scans; see :class:`uumamba.data.PreprocessRecipe`.

    Args:
        spacing_mm: spacing of the through-plane axis and of the two axes in plane; null keeps the scan's.
        normalisation: ``zscore`` for each scan on its own, ``ct`` by the statistics of the data set, or ``none``; one
            word for all channels or a list. ``auto`` chooses by the channels' names: CT, noNorm, else zscore.
        clip_percentiles: lower and upper percentile of the intensities, as limits.
        ct_statistics: statistics of ``ct``. Without them ``uumamba prepare`` computes them as nnU-Net does, in the
            foreground of the training cases of all folds, of each channel of CT, and stores them in ``recipe.json``.
    """

    spacing_mm: tuple[Positive | None, Positive | None, Positive | None]
    normalisation: Normalisation | Literal["auto"] | tuple[Normalisation, ...] = PreprocessRecipe.normalisation
    clip_percentiles: tuple[float, float] = PreprocessRecipe.clip_percentiles
    ct_statistics: Annotated[Part, PartOf("ct_statistics")] | None = None

    def resolve(self, channels: Sequence[str]) -> "PreprocessConfig":
        """Replace ``auto`` by the words for a data set's channels."""
        if self.normalisation != "auto":
            return self
        return self.model_copy(update={"normalisation": choose_normalisation(channels)})

    def build(self, channels: Sequence[str] | None = None) -> PreprocessRecipe:
        """Build the recipe; it lacks the statistics that ``uumamba prepare`` computes.

        Args:
            channels: names of the data set's channels; None does not check their number.
        """
        statistics = None if self.ct_statistics is None else self.ct_statistics.bind()()
        resolved = self.resolve(channels or ("image",))
        recipe = PreprocessRecipe(**{**resolved.model_dump(), "ct_statistics": statistics})
        if channels is not None:
            recipe.split(len(channels))
        require(
            statistics is None or self.clip_percentiles == PreprocessRecipe.clip_percentiles,
            "clip_percentiles",
            got=self.clip_percentiles,
            expected="no value, as ct_statistics gives the limits",
            fix="leave one of them out",
        )
        return recipe
