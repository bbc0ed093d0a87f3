"""Real conversions of real models, proven by the device's own engines and golden test."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from examples.parts import script
from skerry import convert
from skerry.convert import converting, originals, runtimes, samples
from skerry.convert.data import gather
from skerry_agent import engines
from skerry_agent import golden as device
from skerry_modules import onnx_model, package
from skerry_modules.errors import InputError
from skerry_modules.index import digest_of, index_bytes

from . import models

QUICK = convert.Options(timing_s=0.01)
EVERY = [
    ("onnx", "f32"),
    ("onnx", "int8-static"),
    ("onnx", "int8-dynamic"),
    ("openvino", "f32"),
    ("openvino", "f16"),
    ("openvino", "int8-static"),
]


def prove(folder: Path, cache: Path) -> Any:
    """What a device does with the module before it serves."""
    manifest = package.read_folder(folder)
    model = engines.get(manifest.engine).load(folder, manifest, cache)
    try:
        return device.run(manifest, folder, model.run)
    finally:
        model.close()


def digest(folder: Path) -> str:
    return digest_of(index_bytes(package.build_index(folder, package.read_folder(folder))[0]))


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.digits_module(tmp_path_factory.mktemp("original") / "digits")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.heldout(tmp_path_factory.mktemp("samples") / "heldout.npz")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.heldout(tmp_path_factory.mktemp("samples") / "images.npz", images=True)


@pytest.mark.parametrize(("to", "precision"), EVERY)
def test_a_device_proves_the_conversion_against_the_original(
    to: Any, precision: Any, module: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "converted"
    report = convert.convert(module, out, to=to, precision=precision, samples=rows, options=QUICK)
    assert report.ok
    assert report.verdict.agreement >= 0.99
    assert report.before.accuracy is not None
    assert report.before.accuracy > 0.95
    assert report.after.accuracy == pytest.approx(report.before.accuracy, abs=0.01)
    assert [one.rows for one in report.after.latency] == [1, 32]
    assert min(one.p50_us for one in (*report.before.latency, *report.after.latency)) > 0

    proof = prove(out, tmp_path / "cache")
    assert proof.passed, proof.message
    # The golden outputs are the original's, not those of the model that they prove.
    original = engines.get("onnx").load(module, package.read_folder(module), tmp_path / "cache")
    with np.load(out / "golden.npz") as written, np.load(module / "golden.npz") as before:
        assert np.array_equal(written["input.pixels"], before["input.pixels"])
        said = original.run({"pixels": before["input.pixels"]})
        np.testing.assert_allclose(written["output.probabilities"], said["probabilities"], atol=1e-6)
    original.close()


@pytest.mark.parametrize("precision", ["int8-static", "int8-dynamic"])
def test_the_new_golden_test_is_too_tight_for_another_model(
    precision: Any, module: Path, rows: Path, tmp_path: Path
) -> None:
    convert.convert(module, tmp_path / "int8", precision=precision, samples=rows, options=QUICK)
    other = models.digits_module(tmp_path / "good", quality="good")
    shutil.copy(other / "model.onnx", tmp_path / "int8" / "model.onnx")
    assert not prove(tmp_path / "int8", tmp_path / "cache").passed


def test_the_manifest_keeps_what_it_said_and_tells_where_it_comes_from(
    module: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "converted"
    convert.convert(module, out, to="openvino", precision="int8-static", samples=rows, options=QUICK)
    before, after = package.read_folder(module), package.read_folder(out)
    assert (after.engine, after.model) == ("openvino", "model.xml")
    for field in ("name", "inputs", "outputs", "resources", "capture", "license", "batching"):
        assert getattr(after, field) == getattr(before, field), field
    assert "an 8×8 image row by row" in (out / "module.toml").read_text()
    assert after.tags["converted-from"] == f"module:{digest(module)}"
    assert after.tags["conversion"] == "openvino-int8-static"
    assert f"onnxruntime-{onnx_version('onnxruntime')}" in after.tags["converted-with"].split()
    record = json.loads((out / "conversion.json").read_bytes())
    assert record["from"]["digest"] == digest(module)
    assert record["method"]["calibrator"] == "minmax"
    assert record["calibration"]["rows"] == 300
    assert record["gate"]["ok"] is True
    packed = package.write_package(out, tmp_path / "module.skerry")
    assert {"conversion.json", "model.bin", "card.json", "baseline.json"} <= {
        entry.path for entry in packed.index.files
    }


def onnx_version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def test_the_same_conversion_gives_the_same_digest(module: Path, rows: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        convert.convert(module, tmp_path / name, precision="int8-static", samples=rows, options=QUICK)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_a_package_converts_as_its_folder_does(module: Path, rows: Path, tmp_path: Path) -> None:
    packed = package.write_package(module, tmp_path / "digits.skerry").path
    from_package = convert.convert(packed, tmp_path / "one", samples=rows, options=QUICK)
    from_folder = convert.convert(module, tmp_path / "two", samples=rows, options=QUICK)
    assert from_package.origin == from_folder.origin
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_what_depends_on_its_neighbours_is_not_batched(module: Path, rows: Path, tmp_path: Path) -> None:
    assert package.read_folder(module).batching.max_rows == 16
    convert.convert(module, tmp_path / "static", precision="int8-static", samples=rows, options=QUICK)
    convert.convert(module, tmp_path / "dynamic", precision="int8-dynamic", samples=rows, options=QUICK)
    assert package.read_folder(tmp_path / "static").batching.max_rows == 16
    assert package.read_folder(tmp_path / "dynamic").batching.max_rows == 1


# -- a convolutional net -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "precision"), EVERY)
def test_a_convolutional_net_with_two_outputs(to: Any, precision: Any, images: Path, tmp_path: Path) -> None:
    source = models.convnet(tmp_path / "source" / "net.onnx")
    out = tmp_path / "net"
    report = convert.convert(source, out, to=to, precision=precision, samples=images, options=QUICK)
    assert {(one.name, one.decides) for one in report.verdict.outputs} == {("scores", "argmax"), ("class", "equal")}
    assert report.after.accuracy is not None
    assert report.after.accuracy > 0.9
    assert report.origin.of == "file"
    proof = prove(out, tmp_path / "cache")
    assert proof.passed, proof.message
    if precision == "int8-static" and to == "onnx":
        assert {"QuantizeLinear", "DequantizeLinear"} <= set(onnx_model.read(out / "model.onnx").operators)
        assert report.after.size < 0.6 * report.before.size
    if precision == "int8-dynamic":  # its integer convolutions are many times slower than floats
        operators = set(onnx_model.read(out / "model.onnx").operators)
        assert "MatMulInteger" in operators
        assert "Conv" in operators


@pytest.mark.parametrize("precision", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("options", [{"batch": 4}, {"opset": 11}, {"external": True}, {"stated": True}], ids=str)
def test_forms_that_quantisers_stumble_over(
    options: dict[str, Any], precision: Any, images: Path, tmp_path: Path
) -> None:
    source = models.convnet(tmp_path / "source" / "net.onnx", **options)
    report = convert.convert(source, tmp_path / "net", precision=precision, samples=images, options=QUICK)
    assert report.ok
    assert report.verdict.cases % (options.get("batch") or 1) == 0
    assert prove(tmp_path / "net", tmp_path / "cache").passed


@pytest.mark.parametrize("calibrator", ["entropy", "percentile"])
def test_other_ways_to_choose_the_ranges(calibrator: Any, images: Path, tmp_path: Path) -> None:
    source = models.convnet(tmp_path / "source" / "net.onnx")
    options = convert.Options(timing_s=0, calibrator=calibrator, reduce_range=True)
    report = convert.convert(source, tmp_path / "net", precision="int8-static", samples=images, options=options)
    assert report.method == {
        "format": "QDQ", "calibrator": calibrator, "per_channel": True, "reduce_range": True
    }  # fmt: skip
    assert report.after.latency == ()


@pytest.mark.parametrize(("to", "precision"), [("onnx", "int8-static"), ("openvino", "int8-static")])
def test_a_quantisation_that_breaks_the_model_is_no_version(
    to: Any, precision: Any, images: Path, tmp_path: Path
) -> None:
    source = models.convnet(tmp_path / "source" / "net.onnx", stretch=2000.0)
    # In floats it is the very same function …
    assert convert.convert(source, tmp_path / "floats", samples=images, options=QUICK).verdict.agreement == 1
    # … which int8 cannot carry.
    with pytest.raises(convert.GateFailed) as failed:
        convert.convert(source, tmp_path / "int8", to=to, precision=precision, samples=images, options=QUICK)
    assert failed.value.code == "convert.gate_failed"
    report = failed.value.report
    assert not report.ok
    assert report.folder is None
    assert report.verdict.agreement < 0.9
    assert len(report.verdict.worst) == 5
    worst = report.verdict.worst[0]
    assert worst.name.startswith("images.npz row ")
    assert f"{worst.name}: " in failed.value.message
    # The sample that it names does flip.
    row = int(worst.name.rpartition(" ")[2])
    with np.load(images) as archive:
        image = archive["image"][row : row + 1]
    import onnxruntime

    said = onnxruntime.InferenceSession(str(source)).run(["class"], {"image": image})[0][0]
    assert str(said) in worst.expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["floats", "source"]


@pytest.mark.parametrize("wrong", [1, 32])
def test_an_engine_has_to_be_right_for_one_row_and_for_many(wrong: int, images: Path, tmp_path: Path) -> None:
    """Some are not: OpenVINO 2026.4 sums logarithms rightly for one row and wrongly for eight."""
    original = originals.open_path(models.convnet(tmp_path / "net.onnx"), tmp_path, QUICK, plain=False)
    given = samples.load([images], original.inputs, "label")
    rows = gather(original, given, None, "f32", QUICK)
    reference = runtimes.score_all(original.score, rows.judged.inputs, 32)

    def score(inputs: Any) -> Any:
        said = original.score(inputs)
        return {name: array[..., ::-1] for name, array in said.items()} if len(inputs["image"]) == wrong else said

    judged = converting._judge(
        original, score, reference, rows, precision="f32", options=QUICK, progress=lambda *_: None
    )
    assert not judged.verdict.ok
    assert judged.verdict.problems[0].endswith(f"(scored with {wrong} row{'s' * (wrong > 1)} a call)")


def test_what_is_accepted_can_be_declared(module: Path, rows: Path, tmp_path: Path) -> None:
    tight = convert.Options(timing_s=0, max_delta=1e-4)
    with pytest.raises(convert.GateFailed, match=r"'probabilities' differs by up to .* \(allowed 0.0001\)"):
        convert.convert(module, tmp_path / "int8", precision="int8-static", samples=rows, options=tight)
    loose = convert.Options(timing_s=0, max_delta=0.5)
    report = convert.convert(module, tmp_path / "int8", precision="int8-static", samples=rows, options=loose)
    assert report.verdict.outputs[0].bar == 0.5


def test_a_module_that_fails_its_own_golden_test_is_not_blessed(rows: Path, tmp_path: Path) -> None:
    broken = models.digits_module(tmp_path / "broken", quality="broken")
    with pytest.raises(InputError, match="it fails its own golden test here") as refused:
        convert.convert(broken, tmp_path / "out", samples=rows, options=QUICK)
    assert refused.value.code == "convert.broken_original"
    assert not (tmp_path / "out").exists()


# -- ai.onnx.ml --------------------------------------------------------------------------------------------------------


def with_label_branch(folder: Path) -> Path:
    """The digits module as skl2onnx exports it: labels too, by operators of ``ai.onnx.ml``."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    pixels, labels, _, _ = models.digits()
    network = script("digits").train(pixels * 16, labels, {"rows": None, "hidden": 16, "epochs": 40}, 0)
    whole = to_onnx(
        network,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={id(network): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    folder = models.digits_module(folder)
    (folder / "model.onnx").write_bytes(whole.SerializeToString())
    expected = network.predict_proba(pixels[:32]).astype(np.float32)
    np.savez(folder / "golden.npz", **{"input.pixels": pixels[:32], "output.probabilities": expected})
    return folder


def test_a_branch_that_nobody_asked_for_is_cut(rows: Path, tmp_path: Path) -> None:
    source = with_label_branch(tmp_path / "source")
    operators = onnx_model.read(source / "model.onnx").operators
    assert any(name.startswith("ai.onnx.ml.") for name in operators)
    report = convert.convert(source, tmp_path / "ir", to="openvino", samples=rows, options=QUICK)
    assert report.verdict.agreement == 1
    assert prove(tmp_path / "ir", tmp_path / "cache").passed


def test_operators_that_openvino_lacks_are_named(rows: Path, tmp_path: Path) -> None:
    source = with_label_branch(tmp_path / "source") / "model.onnx"  # as a file, every output is asked for
    with pytest.raises(InputError, match=r"OpenVINO has no operator ai\.onnx\.ml\.\w+") as refused:
        convert.convert(source, tmp_path / "ir", to="openvino", samples=rows, options=QUICK)
    assert refused.value.code == "convert.unsupported"
    assert refused.value.data["operator"].startswith("ai.onnx.ml.")


def test_imports_of_operator_sets_that_no_node_uses_are_dropped(module: Path, rows: Path, tmp_path: Path) -> None:
    convert.convert(module, tmp_path / "int8", precision="int8-static", samples=rows, options=QUICK)
    model = onnx.load(str(tmp_path / "int8" / "model.onnx"))
    assert [one.domain for one in model.opset_import] == [""]


# -- what is refused, and what is said ---------------------------------------------------------------------------------


def test_int8_needs_samples_and_floats_say_that_theirs_were_made_up(tmp_path: Path) -> None:
    source = models.convnet(tmp_path / "source" / "net.onnx")
    for precision in ("int8-static", "int8-dynamic"):
        with pytest.raises(InputError, match="cannot quantise without samples") as refused:
            convert.convert(source, tmp_path / "net", precision=precision, options=QUICK)  # type: ignore[arg-type]
        assert refused.value.code == "convert.samples"
    report = convert.convert(source, tmp_path / "net", to="openvino", options=QUICK)
    assert any("generated inputs" in note for note in report.notes)


def test_what_is_quantised_already_is_not_quantised_again(module: Path, rows: Path, tmp_path: Path) -> None:
    for precision in ("int8-static", "int8-dynamic"):
        once = tmp_path / precision
        convert.convert(module, once, precision=precision, samples=rows, options=QUICK)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="it is quantised already"):
            convert.convert(once, tmp_path / "twice", precision="int8-static", samples=rows, options=QUICK)
    # It may still change its engine, whose int8 kernels round otherwise: that has to be declared.
    with pytest.raises(convert.GateFailed, match=r"\(allowed 0\.001\)"):
        convert.convert(tmp_path / "int8-static", tmp_path / "ir", to="openvino", samples=rows, options=QUICK)
    declared = convert.Options(timing_s=0, max_delta=0.1)
    again = convert.convert(tmp_path / "int8-static", tmp_path / "ir", to="openvino", samples=rows, options=declared)
    assert again.origin.digest == digest(tmp_path / "int8-static")


def test_few_samples_are_told_and_the_golden_inputs_may_calibrate(module: Path, tmp_path: Path) -> None:
    report = convert.convert(module, tmp_path / "int8", precision="int8-static", options=QUICK)
    assert report.calibration is not None
    assert (report.calibration.rows, report.verdict.cases) == (16, 32)
    assert any("calibrated on 16 of the golden inputs" in note for note in report.notes)
    assert any("only 32 samples were judged" in note for note in report.notes)


def test_calibration_and_gate_share_no_row(module: Path, rows: Path, tmp_path: Path) -> None:
    shared = convert.convert(module, tmp_path / "one", precision="int8-static", samples=rows, options=QUICK)
    assert shared.calibration is not None
    assert shared.calibration.rows + shared.verdict.cases == 599 + 32  # the golden inputs are judged besides
    apart = convert.convert(
        module, tmp_path / "two", precision="int8-static", samples=rows, calibration=module, options=QUICK
    )
    assert apart.calibration is not None
    assert (apart.calibration.rows, apart.verdict.cases) == (32, 599 + 32)


def test_what_stands_there_is_not_overwritten(module: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="it is there already"):
        convert.convert(module, tmp_path / "taken", options=QUICK)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "asked", "text"),
    [
        ("digits", {"precision": "f16"}, "cannot convert to f16 for onnx"),
        ("digits", {"precision": "int4"}, "cannot convert to the precision 'int4': choose f32"),
        ("digits", {"to": "tflite"}, "cannot convert to 'tflite': choose onnx or openvino"),
        ("digits", {"options": convert.Options(calibrator="best")}, "cannot calibrate by 'best'"),  # type: ignore[arg-type]
        ("digits", {"options": convert.Options(argmax=("labels",))}, "cannot hold 'labels' to its arg-max"),
        ("none.onnx", {}, "there is no such file or folder"),
        ("model.xml", {}, "OpenVINO IR is where conversions end"),
        ("weights.pth", {}, "write torch.export.export"),
        ("notes.txt", {}, "give a module's folder or package"),
        ("garbage.onnx", {}, "as an ONNX model"),
    ],
)
def test_what_cannot_be_converted_is_said_in_a_sentence(
    name: str, asked: dict[str, Any], text: str, module: Path, tmp_path: Path
) -> None:
    for made in ("model.xml", "weights.pth", "notes.txt", "garbage.onnx"):
        (tmp_path / made).write_bytes(b"not what it says")
    source = module if name == "digits" else tmp_path / name
    with pytest.raises(InputError, match=text) as refused:
        convert.convert(source, tmp_path / "out", **asked)
    assert refused.value.code in ("convert.unsupported", "manifest.model_mismatch")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["python", "pipeline"])
def test_modules_without_one_model_are_refused(engine: str, module: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(module, tmp_path / "source"))
    if engine == "python":
        text = (source / "module.toml").read_text().replace('engine = "onnx"', 'engine = "python"')
        (source / "module.toml").write_text(text)
    else:
        source = Path(script("digits-ensemble").HERE)
    with pytest.raises(InputError, match=f"its engine is {engine}") as refused:
        convert.convert(source, tmp_path / "out", options=QUICK)
    assert refused.value.code == "convert.unsupported"


def test_a_manifest_that_names_options_keeps_only_those_that_were_judged(
    module: Path, rows: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(module, tmp_path / "source"))
    text = (source / "module.toml").read_text()
    (source / "module.toml").write_text(text + '\n[options]\nthreads = 1\nprovider = "CPUExecutionProvider"\n')
    convert.convert(source, tmp_path / "ir", to="openvino", samples=rows, options=QUICK)
    assert tomllib.loads((tmp_path / "ir" / "module.toml").read_text())["options"] == {"threads": 1}
