"""An ONNX model in LitServe. Runs in LitServe's environment: ``python lit_server.py MODEL PORT``."""

import sys

import litserve as ls
import numpy as np
import onnxruntime as ort


class Scorer(ls.LitAPI):
    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict) -> np.ndarray:
        return np.asarray(request["x"], dtype="f4")

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(["y"], {"x": x})[0]

    def encode_response(self, output: np.ndarray) -> dict:
        return {"y": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Scorer(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, num_api_servers=1, log_level="warning"
    )
