"""Layout of image and label pairs that two globs find."""

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from data_prep.folder.folder_options import KEY, FolderOptions
from data_prep.folder.listing import ONLY_CHANNEL, Listing, join_channels
from uumamba.data.case import Case
from uumamba.data.case_files import image_suffix
from uumamba.runtime.errors import CaseError, require

_WILDCARD = re.compile(r"\*\*/|\*|\?")
_REGEXES = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}


def list_pairs(raw: Path, options: FolderOptions) -> Listing:
    """List images and labels, paired by the texts of the wildcards.

    The glob ``images/*_ct.nii.gz`` finds the case ``p1`` in ``images/p1_ct.nii.gz``, and ``labels/*.nii.gz`` its label
    in ``labels/p1.nii.gz``. The texts of several wildcards are joined by ``_``. A folder that a glob finds is a DICOM
    series. Hidden files are left out, and a file that ``labels`` finds is no image.

    Raises:
        UsageError: a glob finds nothing, leads out of the folder, or has other wildcards than the first.
    """
    assert options.images is not None
    assert options.labels is not None
    globs = {ONLY_CHANNEL: options.images} if isinstance(options.images, str) else dict(options.images)
    require(globs, f"{KEY}.images", got=globs, expected="a glob for each channel")
    keys = {channel: f"{KEY}.images" + ("" if len(globs) == 1 else f".{channel}") for channel in globs}
    labels = find_paths(raw, options.labels, key=f"{KEY}.labels")
    taken = {path for paths in labels.values() for path in paths}
    images = {name: find_paths(raw, pattern, key=keys[name], taken=taken) for name, pattern in globs.items()}
    first = next(iter(globs.values()))
    for key, pattern in [*((keys[channel], globs[channel]) for channel in globs), (f"{KEY}.labels", options.labels)]:
        expected = f"the wildcards of {first}, {' '.join(_WILDCARD.findall(first))}"
        require(_WILDCARD.findall(pattern) == _WILDCARD.findall(first), key, got=pattern, expected=expected)
    cases, failures = [], []
    for case_id in sorted({*labels}.union(*images.values())):
        files = [*((channel, globs[channel], images[channel].get(case_id, [])) for channel in globs)]
        files.append(("label", options.labels, labels.get(case_id, [])))
        wrong = next((each for each in files if len(each[2]) != 1), None)
        if wrong is not None:
            failures.append(_describe(case_id, *wrong))
            continue
        *paths, label = (path for _, _, (path,) in files)
        cases.append(Case(case_id, "", "", join_channels(paths), label=label))
    return Listing(cases, failures, tuple(globs))


def find_paths(raw: Path, pattern: str, *, key: str, taken: Collection[Path] = ()) -> dict[str, list[Path]]:
    """Find the paths of each case by a glob.

    Args:
        raw: the folder.
        pattern: ``*`` and ``?`` match within a name, ``**/`` any folders.
        key: the glob's key, for errors.
        taken: paths that are left out.

    Raises:
        UsageError: the glob is absolute, has ``..`` or no wildcard, or finds nothing.

    Example:
        >>> import tempfile
        >>> raw = Path(tempfile.mkdtemp())
        >>> (raw / "p1").mkdir()
        >>> (raw / "p1" / "ct_2.nii.gz").touch()
        >>> sorted(find_paths(raw, "*/ct_*.nii.gz", key="images"))
        ['p1_2']
    """
    parts = Path(pattern).parts
    is_inside = not Path(pattern).is_absolute() and ".." not in parts
    fix = "give the folder that holds all files as --raw"
    require(is_inside, key, got=pattern, expected="a glob within the folder", fix=fix)
    is_known = "[" not in pattern and all("**" not in part or part == "**" for part in parts)
    is_valid = _WILDCARD.search(pattern) and is_known
    require(is_valid, key, got=pattern, expected="a glob with * in place of the case, such as images/*.nii.gz")
    found: dict[str, list[Path]] = defaultdict(list)
    regex = _make_regex(pattern)
    for path in sorted({*raw.glob(pattern)}.difference(taken)):
        inside = path.relative_to(raw)
        if match := not any(part.startswith(".") for part in inside.parts) and regex.fullmatch(inside.as_posix()):
            text = "_".join(filter(None, (group.strip("/").replace("/", "_") for group in match.groups())))
            found[_strip_suffix(text, path)].append(path)
    others = " other than the label maps" if taken else ""
    require(found, key, got=pattern, expected=f"a glob that finds files in {raw}{others}")
    return dict(found)


def _make_regex(pattern: str) -> re.Pattern[str]:
    parts, start = [], 0
    for match in _WILDCARD.finditer(pattern):
        parts += [re.escape(pattern[start : match.start()]), _REGEXES[match[0]]]
        start = match.end()
    return re.compile("".join([*parts, re.escape(pattern[start:])]))


def _strip_suffix(text: str, path: Path) -> str:
    """Remove the suffix of a glob such as ``images/*``."""
    suffix = image_suffix(path)
    return text.removesuffix(suffix) if path.is_file() and suffix and text != suffix else text


def _describe(case_id: str, key: str, pattern: str, paths: list[Path]) -> CaseError:
    got = " and ".join(map(str, paths[:2])) or "no file"
    fix = "rename one of the files" if paths else f"add the file, or leave the other files of {case_id} out"
    return CaseError(case_id, key, got=got, expected=f"one file by {pattern}", fix=fix)
