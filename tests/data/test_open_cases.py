"""Cases that stay open: the same as opened anew, few at a time, and never copied into another process."""

import pickle

import numpy as np
import pytest

from uumamba.data.open_cases import OpenCases
from uumamba.data.prepared import PreparedCase


class CountedFolder:
    """Opens cases of zeros, and keeps which; OpenCases asks a folder for nothing but ``case``."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def case(self, case_id: str) -> PreparedCase:
        self.opened.append(case_id)
        image, label = np.zeros((1, 1, 2, 2), np.float16), np.zeros((1, 2, 2), np.uint8)
        return PreparedCase(case_id, image, label, np.zeros((0, 4), np.int32), None)  # type: ignore[arg-type]  # nobody asks where it lies


def test_a_case_is_opened_once_and_the_one_longest_unused_makes_room() -> None:
    folder = CountedFolder()
    cases = OpenCases(folder, most=2)  # type: ignore[arg-type]  # it has all that is called
    assert cases("a") is cases("a")
    assert [cases(name).case_id for name in ("b", "a", "c")] == ["b", "a", "c"]
    assert folder.opened == ["a", "b", "c"]
    cases("a")
    cases("b")
    assert folder.opened == ["a", "b", "c", "b"], "b was the one longest unused when c came"


def test_another_process_opens_its_own() -> None:
    cases = OpenCases(CountedFolder())  # type: ignore[arg-type]  # as above
    cases("a")
    copied = pickle.loads(pickle.dumps(cases))  # as a loader hands it to its workers
    assert copied("a") is not cases("a")
    assert copied.folder.opened == ["a", "a"]


def test_a_case_that_cannot_be_opened_is_asked_for_again() -> None:
    class Damaged(CountedFolder):
        def case(self, case_id: str) -> PreparedCase:
            if not self.opened:
                self.opened.append("damaged")
                raise OSError("input/output error")
            return super().case(case_id)

    cases = OpenCases(Damaged())  # type: ignore[arg-type]  # as above
    with pytest.raises(OSError, match="input/output error"):
        cases("a")
    assert cases("a").case_id == "a"
