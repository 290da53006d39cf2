import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from uumamba.domain_generalization import domain_scores
from uumamba.runtime.errors import UsageError

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])


def test_scores_by_hand() -> None:
    # two of three right; cross entropy log(1 + e^-2) where right, log(1 + e^2) where wrong
    split = TensorDataset(LOGITS, torch.tensor([0, 1, 1]))
    scores = domain_scores(nn.Identity(), {4: split}, {4: split}, batch_size=2)
    loss = (2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 3
    assert scores == pytest.approx({"env4_in_acc": 2 / 3, "env4_out_acc": 2 / 3, "env4_out_loss": loss})


def test_every_pixel_of_a_label_counts_as_one() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[:, 1] = 1.0  # class 1 everywhere
    label = torch.tensor([[[1, 1], [1, 0]], [[1, 2], [0, 1]]])
    split = TensorDataset(logits, label)
    assert domain_scores(nn.Identity(), {0: split}, {})["env0_in_acc"] == 5 / 8


def test_each_module_is_asked_in_evaluation_mode_and_gets_its_own_mode_back() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2))
    net[1].eval()  # frozen by its owner
    split = TensorDataset(LOGITS, torch.tensor([0, 1, 0]))
    state = torch.get_rng_state()
    scores = [domain_scores(net, {0: split}, {}) for _ in range(2)]
    assert scores[0] == scores[1] == {"env0_in_acc": 1.0}
    assert [module.training for module in net.modules()] == [True, True, False]
    assert torch.equal(net[1].running_mean, torch.zeros(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_modes_are_given_back_when_the_network_raises() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        domain_scores(net, {0: TensorDataset(LOGITS, torch.zeros(3, dtype=torch.long))}, {})
    assert net.training
    assert net[0].training


def test_labels_that_cross_entropy_ignores_count_in_no_score() -> None:
    ignored = TensorDataset(torch.cat([LOGITS, LOGITS]), torch.tensor([0, 1, 1, -100, -100, -100]))
    alone = TensorDataset(LOGITS, torch.tensor([0, 1, 1]))
    scores = [domain_scores(nn.Identity(), {0: split}, {0: split}) for split in (ignored, alone)]
    assert scores[0] == pytest.approx(scores[1])


def test_a_split_without_labels_has_scores_that_are_no_numbers() -> None:
    nothing = TensorDataset(LOGITS, torch.full((3,), -100))
    scores = domain_scores(nn.Identity(), {1: nothing}, {1: nothing})
    assert set(scores) == {"env1_in_acc", "env1_out_acc", "env1_out_loss"}
    assert all(map(math.isnan, scores.values()))


def test_an_empty_split_is_refused() -> None:
    empty = TensorDataset(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    with pytest.raises(UsageError, match="The out split of domain 3 is empty"):
        domain_scores(nn.Identity(), {}, {3: empty})
