"""MESA: loss plus divergence from a moving-average teacher."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from tests.optim_members import torch_divergence
from uumamba.losses import CrossEntropyLoss, DeepSupervisionLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.optim import MESA, SAM, Plain

Batches = list[dict[str, Tensor]]


def fresh_net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4)).double()


@pytest.fixture
def batches(training: Any) -> Batches:
    return training("Plain").batches(8)


def train(net: nn.Module, objective: Any, batches: Batches, make: Any = Plain, **options: Any) -> list[float]:
    torch.manual_seed(9)
    optimizer = make(net.parameters(), partial(SGD, lr=0.1, momentum=0.9), net=net, **options)
    if isinstance(objective, MESA):
        optimizer.register_step_post_hook(lambda *_: objective.after_step(net))
    return [optimizer.step(partial(objective, net, batch)).item() for batch in batches]


@pytest.mark.parametrize("spatial", [(), (5,), (2, 3, 4)])
def test_the_divergence_is_that_of_the_definition_and_voxels_count_as_samples(spatial: tuple[int, ...]) -> None:
    make = [nn.Linear, partial(nn.Conv1d, kernel_size=1), None, partial(nn.Conv3d, kernel_size=1)][len(spatial)]
    net, other = make(2, 3).double(), make(2, 3).double()
    image, label = torch.randn(4, 2, *spatial, dtype=torch.float64), torch.randint(3, (4, *spatial))
    loss = nn.CrossEntropyLoss()
    expected = loss(net(image), label).item() + 0.5 * 4 * torch_divergence(other(image), net(image), 2.0).item()
    objective = MESA(loss, other, weight=0.5, temperature=2.0)
    assert objective(net, {"image": image, "label": label}).item() == pytest.approx(expected, rel=1e-10)


def test_the_divergence_leaves_out_ignored_voxels_and_takes_outputs_that_overlap() -> None:
    net, other = (nn.Conv1d(2, 3, kernel_size=1).double() for _ in range(2))
    image, label = torch.randn(4, 2, 6, dtype=torch.float64), torch.randint(3, (4, 1, 6))
    label[..., 4:] = 255
    make = partial(MESA, CrossEntropyLoss(ignore_label=255), other, weight=0.5, temperature=2.0, ignore_label=255)
    known = {"image": image[..., :4], "label": label[..., :4]}
    for form in ("softmax", "sigmoid"):
        found = make(form=form)(net, {"image": image, "label": label})
        torch.testing.assert_close(found, make(form=form)(net, known))
    past, now = (each(known["image"]).detach() / 2 for each in (other, net))
    p, q = past.sigmoid(), now.sigmoid()
    terms = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    expected = CrossEntropyLoss()(net(known["image"]), known["label"]) + 0.5 * 4 * terms.sum(1).mean()
    torch.testing.assert_close(make(form="sigmoid")(net, known), expected)


def test_a_teacher_equal_to_the_network_adds_nothing_to_loss_or_gradient(batches: Batches) -> None:
    net = fresh_net().eval()
    found = MESA(nn.CrossEntropyLoss(), net)(net, batches[0])
    expected = F.cross_entropy(net(batches[0]["image"]), batches[0]["label"])
    assert found == expected
    params = list(net.parameters())
    torch.testing.assert_close(torch.autograd.grad(found, params), torch.autograd.grad(expected, params))


def test_the_teacher_is_the_recurrence_of_weights_and_statistics_in_evaluation_mode(batches: Batches) -> None:
    net = fresh_net()
    objective = MESA(nn.CrossEntropyLoss(), net, decay=0.7).train()
    optimizer, answers = Plain(net.parameters(), partial(SGD, lr=0.1), net=net), []
    objective.teacher.register_forward_hook(lambda module, args, output: answers.append(output))
    expected: dict[str, Tensor] = {}
    for batch in batches:
        before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
        optimizer.step(partial(objective, net, batch))
        for name, value in objective.teacher.state_dict().items():
            assert torch.equal(value, before[name]), "a forward pass does not change it"
        objective.after_step(net)
        for name, value in net.state_dict().items():
            now = value.double()
            expected[name] = 0.7 * expected[name] + 0.3 * now if name in expected else now.clone()
    found = objective.teacher.module.state_dict()
    for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var", "4.weight"):
        torch.testing.assert_close(found[name], expected[name])
        assert not torch.allclose(found[name], net.state_dict()[name])
    torch.testing.assert_close(answers[0], fresh_net().eval()(batches[0]["image"]))
    assert not answers[0].requires_grad


@pytest.mark.parametrize("make", [Plain, partial(SAM, rho=0.3)], ids=["Plain", "SAM"])
def test_with_weight_zero_training_equals_that_of_the_loss_bit_for_bit(batches: Batches, make: Any) -> None:
    net, other = fresh_net(), fresh_net()
    objective = MESA(nn.CrossEntropyLoss(), net, weight=0.0)
    objective.teacher.register_forward_hook(lambda module, args, output: pytest.fail("no pass of the teacher"))
    found = train(net, objective, batches, make)
    assert found == train(other, lambda net, batch: F.cross_entropy(net(batch["image"]), batch["label"]), batches, make)
    for one, another in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, another)


def test_the_divergence_counts_from_its_start_step(batches: Batches) -> None:
    def losses(**options: Any) -> list[float]:
        net = fresh_net()
        return train(net, MESA(nn.CrossEntropyLoss(), net, decay=0.9, **options), batches)

    plain, late, early = losses(weight=0.0), losses(start_step=5), losses()
    assert late[:5] == plain[:5]
    assert late[5] > plain[5]
    assert early[1] > plain[1]


def test_both_passes_of_sam_have_the_same_teacher(batches: Batches) -> None:
    net = fresh_net()
    objective = MESA(nn.CrossEntropyLoss(), net, decay=0.5)
    answers: list[Tensor] = []
    objective.teacher.register_forward_hook(lambda module, args, output: answers.append(output))
    train(net, objective, batches, SAM, rho=0.5)
    assert all(torch.equal(first, second) for first, second in zip(answers[::2], answers[1::2], strict=True))
    assert not torch.equal(answers[0], answers[-1])
    assert objective.teacher.n_averaged == 8


def test_only_the_loss_and_not_the_teacher_has_parameters_to_learn() -> None:
    loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
    objective = MESA(loss, nn.Conv2d(1, 3, 1))
    assert [name for name, value in objective.named_parameters() if value.requires_grad] == ["loss.log_variances"]
    assert objective.loss_weights() == {"region": 0.5, "distribution": 0.5}
    assert MESA(nn.CrossEntropyLoss(), nn.Linear(1, 2)).loss_weights() == {}


class TwoScales(nn.Module):
    """Network with deep supervision: a list of logits only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 2, stride=2)

    def forward(self, image: Tensor) -> Any:
        return [self.fine(image), self.coarse(image)] if self.training else self.fine(image)


def test_under_deep_supervision_the_finest_logits_are_compared() -> None:
    net, other, loss = TwoScales(), TwoScales(), DeepSupervisionLoss(CrossEntropyLoss())
    image, label = torch.randn(2, 1, 4, 4), torch.randint(3, (2, 1, 4, 4))
    expected = (
        loss(net(image), label).item() + 0.8 * 25 * torch_divergence(other.fine(image), net.fine(image), 5.0).item()
    )
    found = MESA(loss, other, weight=0.8)(net, {"image": image, "label": label})
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_wrapped_and_compiled_network_is_unwrapped_for_the_copy(batches: Batches) -> None:
    net = fresh_net()
    wrapped = nn.parallel.DistributedDataParallel(torch.compile(net, backend="eager"))
    objective = MESA(nn.CrossEntropyLoss(), wrapped)
    assert objective.teacher.module.state_dict().keys() == net.state_dict().keys()
    with torch.no_grad():
        net[0].weight.add_(1)
    objective.after_step(wrapped)
    assert torch.equal(objective.teacher.module[0].weight, net[0].weight)
