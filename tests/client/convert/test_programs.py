"""Exported PyTorch programs, where torch is installed: no extra asks for it, since it outweighs all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; get it with: pip install torch onnxscript")
pytest.importorskip("onnxscript", reason="torch's exporter needs it: pip install onnxscript")

from skerry import convert  # noqa: E402 - after the skip
from skerry_modules import package  # noqa: E402
from skerry_modules.errors import InputError  # noqa: E402

from . import models  # noqa: E402
from .test_converting import prove  # noqa: E402

QUICK = convert.Options(timing_s=0.01, trust_pickle=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def program() -> Any:
    """A small convolutional net, trained for a moment, exported with a batch that varies."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10), torch.nn.LogSoftmax(1)
    )
    pixels, labels, _, _ = models.digits()
    images, truth = torch.tensor(pixels.reshape(-1, 1, 8, 8) / 16), torch.tensor(labels)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.nll_loss(net(images), truth).backward()
        optimiser.step()
    net[-1] = torch.nn.Softmax(1)
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(net.eval(), (images[:2],), dynamic_shapes=({0: batch},))


def samples(tmp_path: Path, name: str) -> Path:
    _, _, pixels, labels = models.digits()
    np.savez(tmp_path / "rows.npz", **{name: pixels.reshape(-1, 1, 8, 8) / np.float32(16), "label": labels})
    return tmp_path / "rows.npz"


@pytest.mark.parametrize(
    ("to", "precision"),
    [("onnx", "f32"), ("openvino", "int8-static"), ("onnx", "int8-static"), ("onnx", "int8-dynamic")],
)
def test_an_exported_program_converts(program: Any, to: Any, precision: Any, tmp_path: Path) -> None:
    torch.export.save(program, str(tmp_path / "net.pt2"))
    rows = samples(tmp_path, "input")
    report = convert.convert(
        tmp_path / "net.pt2", tmp_path / "out", to=to, precision=precision, samples=rows, options=QUICK
    )
    assert report.before.engine.startswith("torch ")
    assert report.before.accuracy is not None
    assert report.before.accuracy > 0.9
    assert package.read_folder(tmp_path / "out").inputs[0].shape == (-1, 1, 8, 8)
    assert prove(tmp_path / "out", tmp_path / "cache").passed


def test_a_program_from_memory_converts_and_its_threads_stay(program: Any, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    report = convert.from_torch(program, tmp_path / "out", samples=samples(tmp_path, "input"), options=QUICK)
    assert (report.origin.kind, report.origin.of) == ("pytorch", "onnx")
    assert torch.get_num_threads() == threads
    with pytest.raises(InputError, match=r"give torch\.export\.export"):
        convert.from_torch(torch.nn.Linear(2, 2), tmp_path / "no", samples=np.zeros((2, 2), np.float32))
