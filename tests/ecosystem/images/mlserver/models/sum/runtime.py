"""A custom runtime for MLServer: adds the numbers of its input."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Sum(MLModel):
    async def load(self) -> bool:
        self.ready = True
        return self.ready

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        numbers = NumpyCodec.decode_input(payload.inputs[0])
        total = NumpyCodec.encode_output("total", numbers.sum(keepdims=True).reshape(1, 1))
        return InferenceResponse(model_name=self.name, outputs=[total])
