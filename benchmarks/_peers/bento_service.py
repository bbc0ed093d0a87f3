"""An ONNX model in BentoML. Runs in BentoML's environment; MODEL names the file."""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, metrics={"enabled": True}, traffic={"timeout": 60})
class Scorer:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api(route="/infer")
    def infer(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(["y"], {"x": x.astype("f4")})[0]
