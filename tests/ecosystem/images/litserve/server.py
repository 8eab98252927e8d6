"""A model for LitServe: adds the numbers of its input."""

import litserve


class Sum(litserve.LitAPI):
    def setup(self, device):
        self.ready = True

    def decode_request(self, request):
        return request["numbers"]

    def predict(self, x):
        return sum(x)

    def encode_response(self, output):
        return {"total": output}


if __name__ == "__main__":
    server = litserve.LitServer(Sum(), accelerator="cpu")
    server.run(port=8000, generate_client_file=False)
