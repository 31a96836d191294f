"""Serve sentence embeddings over HTTP, by a model that is loaded from S3 when the server starts.

    pip install 'torchwick[transformers]' fastapi uvicorn
    python examples/serve_embeddings.py s3://bucket/all-MiniLM-L6-v2/ 8000
    curl -X POST localhost:8000/embeddings -H 'Content-Type: application/json' -d '{"texts": ["hello"]}'

The directory is one that save_pretrained wrote. The server answers once the model is there; if it cannot be
loaded, the server does not start, and the error says why.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel
from transformers import AutoTokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from torchwick.integrations.transformers import from_pretrained


class Embedder:
    """Turns texts into vectors of length 1: the mean of what the model has for their tokens."""

    def __init__(self, uri: str) -> None:
        self.model: PreTrainedModel = from_pretrained(uri)
        self.tokenizer: PreTrainedTokenizerBase = from_pretrained(uri, AutoTokenizer)

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text."""
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        tokens = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = (tokens * mask).sum(1) / mask.sum(1)
        vectors: list[list[float]] = torch.nn.functional.normalize(means).tolist()
        return vectors


class Texts(BaseModel):
    """What is asked."""

    texts: list[str]


class Embeddings(BaseModel):
    """What is answered."""

    embeddings: list[list[float]]


def make_app(uri: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.embedder = Embedder(uri)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/embeddings")
    def embeddings(texts: Texts, request: Request) -> Embeddings:  # on a thread, while others are answered
        return Embeddings(embeddings=request.app.state.embedder.embed(texts.texts))

    return app


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    uvicorn.run(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
