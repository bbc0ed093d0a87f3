"""A manifest of a pipeline that is right in all."""

from __future__ import annotations

GOOD = """\
format = 1
name = "digits"
engine = "pipeline"

[[inputs]]
name = "pixels"
datatype = "FP32"
shape = [-1, 4]

[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 3]
from = "average.y"

[[steps]]
name = "scale"
engine = "python"
model = "scale.py"
from = {x = "input.pixels"}
[[steps.inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[steps.outputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]

[[steps]]
name = "small"
engine = "onnx"
model = "small.onnx"
from = {x = "scale.x"}
[steps.options]
threads = 1
[[steps.inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[steps.outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 3]

[[steps]]
name = "large"
engine = "onnx"
model = "large.onnx"
[steps.from]
x = "scale.x"
[[steps.inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[steps.outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 3]

[[steps]]
name = "average"
combine = "weighted"
from = {small = "small.y", large = "large.y"}
weights = {small = 1.0, large = 3.0}
[[steps.outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 3]
"""
