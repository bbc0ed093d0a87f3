"""The rule over a pipeline's graph: what it refuses, what it promises, and where in the manifest it points."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.pipelines import GOOD
from skerry_modules import manifest, pipeline
from skerry_modules.errors import InputError
from skerry_modules.pipeline import Step
from skerry_modules.tensors import TensorSpec


def test_a_good_pipeline_reads_back_from_json() -> None:
    found = manifest.parse(GOOD)
    assert [step.name for step in pipeline.order(found.steps)] == ["scale", "small", "large", "average"]
    assert (found.steps[1].options, found.steps[3].weights) == ({"threads": 1}, {"small": 1.0, "large": 3.0})
    assert manifest.engines_of(found) == ("onnx", "python")
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
    alone = manifest.step_manifest(found, found.steps[1])
    assert manifest.problems(alone) == []
    assert (alone.engine, alone.model, alone.outputs[0].name) == ("onnx", "small.onnx", "y")


LARGE_IN = 'x = "scale.x"\n[[steps.inputs]]\nname = "x"\ndatatype = "FP32"\nshape = [-1, 4]\n'
AVERAGE = 'combine = "weighted"\nfrom = {small = "small.y", large = "large.y"}\nweights = {small = 1.0, large = 3.0}'
# what stands there, what it becomes, the field and line of the error, part of its text
FAULTS = [
    pytest.param(
        '{x = "input.pixels"}',
        '{x = "input.image"}',
        "steps[0].from.x",
        20,
        "the module has no input 'image'; it has 'pixels'",
        id="unknown-input",
    ),
    pytest.param(
        'x = "scale.x"\n[[',
        'x = "scaled.x"\n[[',
        "steps[2].from.x",
        51,
        "there is no step 'scaled'; there are input, scale, small, large, average",
        id="unknown-step",
    ),
    pytest.param(
        'x = "scale.x"\n[[',
        'x = "scale.y"\n[[',
        "steps[2].from.x",
        51,
        "step 'scale' has no output 'y'; it has 'x'",
        id="unknown-tensor",
    ),
    pytest.param('x = "scale.x"\n[[', 'x = "scale"\n[[', "steps[2].from.x", 51, "is not STEP.TENSOR", id="no-tensor"),
    pytest.param(
        'x = "scale.x"\n[[',
        'z = "scale.x"\n[[',
        "steps[2].from",
        50,
        "where input 'x' of step 'large' comes from",
        id="input-without-source",
    ),
    pytest.param(
        'x = "scale.x"\n[[',
        'x = "scale.x"\nz = "scale.x"\n[[',
        "steps[2].from.z",
        52,
        "step 'large' has no input 'z'",
        id="source-without-input",
    ),
    pytest.param(
        LARGE_IN, LARGE_IN.replace("FP32", "FP16"), "steps[2].from.x", 51, "scale.x is FP32, 'x' is FP16", id="datatype"
    ),
    pytest.param(
        LARGE_IN,
        LARGE_IN.replace("-1, 4", "-1, 5"),
        "steps[2].from.x",
        51,
        "scale.x has shape [-1, 4], 'x' has [-1, 5]",
        id="shape",
    ),
    pytest.param(
        LARGE_IN, LARGE_IN.replace("-1, 4", "-1"), "steps[2].from.x", 51, "has shape [-1, 4], 'x' has [-1]", id="rank"
    ),
    pytest.param(
        LARGE_IN, LARGE_IN.replace("-1, 4", "1, 4"), "steps[2].from.x", 51, "what varies (-1) fits only -1", id="batch"
    ),
    pytest.param(
        '{x = "input.pixels"}',
        '{x = "scale.x"}',
        "steps[0].from",
        20,
        "the steps go in a circle: scale takes from scale",
        id="cycle",
    ),
    pytest.param(
        'from = "average.y"',
        'from = "small.y"',
        "steps[2].name",
        47,
        "nothing that the module gives rests on step 'large'",
        id="unused-step",
    ),
    pytest.param(
        'from = "average.y"',
        "",
        "outputs[0].from",
        10,
        "it does not say which step gives 'probabilities'",
        id="output-without-source",
    ),
    pytest.param(
        'from = "average.y"',
        'from = "average.z"',
        "outputs[0].from",
        14,
        "step 'average' has no output 'z'",
        id="output-unknown",
    ),
    pytest.param(
        'from = "average.y"', 'from = "scale.x"', "outputs[0].from", 14, "scale.x has shape [-1, 4]", id="output-shape"
    ),
    pytest.param('name = "small"', 'name = "scale"', "steps[1].name", 31, "'scale' stands twice", id="twice"),
    pytest.param(
        'name = "small"', 'name = "input"', "steps[1].name", 31, "stands for the module's own inputs", id="reserved"
    ),
    pytest.param('name = "small"', 'name = "a.b"', "steps[1].name", 31, "use 1 to 63", id="dotted"),
    pytest.param(
        'model = "small.onnx"', 'model = "../small.onnx"', "steps[1].model", 33, "not a plain relative path", id="path"
    ),
    pytest.param('model = "small.onnx"', "", "steps[1].model", 30, "names no file for onnx to load", id="no-model"),
    pytest.param(
        'engine = "onnx"\nmodel = "small',
        'engine = "pynq"\nmodel = "small',
        "steps[1].engine",
        32,
        "Invalid enum value 'pynq'",
        id="pynq",
    ),
    pytest.param(
        'engine = "onnx"\nmodel = "small',
        'combine = "mean"\nengine = "onnx"\nmodel = "small',
        "steps[1].engine",
        33,
        "and not both",
        id="both",
    ),
    pytest.param(
        AVERAGE, AVERAGE.replace("weighted", "mean"), "steps[3].weights", 65, "only combine", id="weights-of-mean"
    ),
    pytest.param(
        AVERAGE,
        AVERAGE.replace("large = 3.0", "huge = 3.0"),
        "steps[3].weights",
        65,
        "give one for each of large, small",
        id="weights-unlike",
    ),
    pytest.param(
        AVERAGE, AVERAGE.replace("3.0", "0.0"), "steps[3].weights", 65, "each must be above 0", id="weight-of-0"
    ),
    pytest.param(
        AVERAGE,
        AVERAGE.replace(', large = "large.y"', ""),
        "steps[3].from",
        64,
        "combines 1 tensors",
        id="combines-one",
    ),
    pytest.param(
        AVERAGE,
        AVERAGE.replace("large.y", "scale.x"),
        "steps[3].from.large",
        64,
        "what is combined and the result are alike",
        id="unlike",
    ),
    pytest.param(
        AVERAGE, AVERAGE.replace("weighted", "median"), "steps[3].combine", 63, "Invalid enum value", id="combiner"
    ),
    pytest.param(
        'engine = "pipeline"\n',
        'engine = "pipeline"\nmodel = "m.onnx"\n',
        "model",
        4,
        "a pipeline has none of its own",
        id="own-model",
    ),
    pytest.param(
        "shape = [-1, 4]\n\n",
        'shape = [-1, 4]\n[[inputs]]\nname = "idle"\ndatatype = "FP32"\nshape = [1]\n',
        "inputs[1].name",
        10,
        "no step takes the module's input 'idle'",
        id="idle-input",
    ),
    pytest.param(
        'name = "pixels"\n',
        'name = "pixels"\nfrom = "scale.x"\n',
        "inputs[0].from",
        7,
        "only the module's outputs do",
        id="input-from",
    ),
    pytest.param(
        'name = "x"\ndatatype = "FP32"\nshape',
        'name = "x"\ndatatype = "F32"\nshape',
        "steps[0].inputs[0].datatype",
        23,
        "'F32' is not one of",
        id="step-datatype",
    ),
]


FAULTS.append(
    pytest.param(
        'model = "scale.py"\nfrom = {x = "input.pixels"}\n[[steps.inputs]]\n',
        'model = "scale.py"\nfrom = {x = "input.pixels"}\n[[steps.inputs]]\nallow_nan = false\n',
        "steps[0].inputs[0].allow_nan",
        22,
        "only the module's own inputs are looked through",
        id="nan-of-a-step",
    )
)


@pytest.mark.parametrize(("old", "new", "field", "line", "problem"), FAULTS)
def test_a_fault_names_step_field_and_line(old: str, new: str, field: str, line: int, problem: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        manifest.parse(GOOD.replace(old, new, 1))
    error = caught.value
    assert error.code == "manifest.invalid"
    assert problem in error.message
    assert (error.data["field"], error.data["line"]) == (field, line)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (GOOD.replace('engine = "pipeline"', 'engine = "onnx"\nmodel = "m.onnx"'), "steps"),
        (
            GOOD.replace('engine = "pipeline"', 'engine = "onnx"\nmodel = "m.onnx"').partition("[[steps]]")[0],
            "outputs[0].from",
        ),
        (GOOD.partition("[[steps]]")[0], "steps"),
        (
            'format = 1\nname = "a"\nengine = "onnx"\n' + GOOD[GOOD.index("[[inputs]]") :].partition("[[steps]]")[0],
            "model",
        ),
    ],
)
def test_only_a_pipeline_has_steps(text: str, field: str) -> None:
    with pytest.raises(InputError) as caught:
        manifest.parse(text)
    assert caught.value.data["field"] == field


# -- what the rule promises -------------------------------------------------------------------------------------------

SHAPES = st.lists(st.sampled_from((-1, 2, 3)), max_size=3).map(tuple)
SPECS = st.builds(TensorSpec, name=st.sampled_from("abc"), datatype=st.sampled_from(("FP32", "INT64")), shape=SHAPES)


def one_per_name(specs: list[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple({spec.name: spec for spec in specs}.values())


@st.composite
def graphs(draw: st.DrawFn) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[Step, ...]]:
    """Steps of scripts. About half are made so that they fit; then something is spoilt in most of the others."""
    tensors = st.lists(SPECS, min_size=1, max_size=2).map(one_per_name)
    spoil = draw(st.sampled_from(("", "", "spec", "source", "forward", "leave out")))
    inputs = draw(tensors)
    known = {f"input.{spec.name}": spec for spec in inputs}
    steps = []
    for name in draw(st.lists(st.sampled_from("pqrs"), min_size=1, max_size=4, unique=True)):
        gives = draw(tensors)
        if spoil == "forward":
            known |= {f"{name}.{spec.name}": spec for spec in gives}
        references = st.sampled_from([*known, "p.z"] if spoil == "source" else list(known))
        sources = {key: draw(references) for key in draw(st.lists(st.sampled_from("xyz"), min_size=1, unique=True))}
        takes = {key: draw(SPECS) if spoil == "spec" else known.get(source) for key, source in sources.items()}
        specs = [msgspec.structs.replace(spec or inputs[0], name=key) for key, spec in takes.items()]
        steps.append(Step(name=name, engine="python", model="m", sources=sources, inputs=tuple(specs), outputs=gives))
        known |= {f"{name}.{spec.name}": spec for spec in gives}
    used = {source for step in steps for source in step.sources.values()}
    ends = [source for source in known if source not in used] or list(known)
    if spoil == "leave out":
        ends = [draw(st.sampled_from(ends))]
    results = [msgspec.structs.replace(known[source], name=f"r{n}", source=source) for n, source in enumerate(ends)]
    return inputs, tuple(results), tuple(draw(st.permutations(steps)))


@given(graphs(), st.integers(0, 2**32))
def test_in_a_good_graph_every_step_is_given_what_it_takes(graph: Any, seed: int) -> None:
    inputs, outputs, steps = graph
    if pipeline.problems(inputs, outputs, steps):
        return
    draw = random.Random(seed)

    def concrete(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
        return spec.datatype, tuple(draw.randrange(1, 9) if size < 0 else size for size in spec.shape)

    values = {f"input.{spec.name}": concrete(spec) for spec in inputs}
    used = set()
    ordered = pipeline.order(steps)
    assert sorted(step.name for step in ordered) == sorted(step.name for step in steps)
    for step in ordered:
        for spec in step.inputs:
            datatype, shape = values[step.sources[spec.name]]
            assert datatype == spec.datatype
            assert spec.accepts(shape)
            used.add(step.sources[spec.name])
        values |= {f"{step.name}.{spec.name}": concrete(spec) for spec in step.outputs}
    for spec in outputs:
        datatype, shape = values[spec.source]
        assert datatype == spec.datatype
        assert spec.accepts(shape)
        used.add(spec.source)
    assert {f"input.{spec.name}" for spec in inputs} <= used
    assert {step.name for step in steps} <= {pipeline.split(source)[0] for source in used}


def test_a_circle_is_told_in_its_order() -> None:
    spec = (TensorSpec(name="t", datatype="FP32", shape=(1,)),)
    result = (msgspec.structs.replace(spec[0], source="last.t"),)
    takes = {"first": "input.t", "a": "c.t", "last": "b.t", "b": "a.t", "c": "b.t"}
    steps = tuple(
        Step(name=name, engine="python", model="m", sources={"t": source}, inputs=spec, outputs=spec)
        for name, source in takes.items()
    )
    (circle, idle, *_) = pipeline.problems(spec, result, steps)
    assert circle == ("steps[1].from", "the steps go in a circle: a takes from c takes from b takes from a")
    assert idle[0] == "steps[0].name"


@given(graphs())
def test_every_problem_names_a_place(graph: Any) -> None:
    inputs, outputs, steps = graph
    for field, problem in pipeline.problems(inputs, outputs, steps):
        assert problem
        assert field.startswith(("steps[", "outputs[", "inputs["))
        head, _, rest = field.partition("[")
        assert int(rest.partition("]")[0]) < len({"steps": steps, "outputs": outputs, "inputs": inputs}[head])


@given(st.permutations(range(6)), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_order_holds_or_there_is_a_circle(places: list[int], edges: list[tuple[int, int]]) -> None:
    takes: dict[int, set[int]] = {place: set() for place in places}
    for after, before in edges:
        takes[after].add(before)
    spec = (TensorSpec(name="t", datatype="FP32", shape=(1,)),)
    steps = tuple(
        Step(name=f"s{place}", engine="python", sources={f"i{n}": f"s{n}.t" for n in takes[place]}, outputs=spec)
        for place in places
    )
    done: set[str] = set()
    for step in pipeline.order(steps):
        assert {pipeline.split(source)[0] for source in step.sources.values()} <= done
        done.add(step.name)
    for step in steps:  # whoever is left waits for another who is left, or for itself
        if step.name not in done:
            assert {pipeline.split(source)[0] for source in step.sources.values()} - done


def test_the_pages_example_is_a_pipeline() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
    found = manifest.parse(text.partition("```toml\n")[2].partition("```")[0])
    assert [step.kind for step in pipeline.order(found.steps)] == ["python", "openvino", "onnx", "weighted"]
