"""The server of transformers (`transformers serve`), with each request's context on a cluster: python -m headwater.serve PATH.

The server, its calls, which are those of OpenAI, and its streaming are the library's. From here are the threads in which its
requests generate beside each other, and the cache that each of them gets.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import headwater

from .chat import connect
from .transformers import Cache
from .transformers.prints import fingerprint

try:
    import uvicorn
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerateManager, GenerationState
except ImportError as e:
    raise SystemExit(f"headwater.serve: {e}: pip install 'transformers[serving]'") from e


class Models(ModelManager):  # type: ignore[misc]
    """The library's models, with their attention on a cluster."""

    def _load_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._load_model(*args, **kwargs)
        model.set_attn_implementation("headwater")
        return model


class Caches:
    """Makes and closes the caches of a model's requests, one at a time: forward passes of others go on meanwhile. One that stays
    keeps the model's hooks where they are."""

    def __init__(self, client: headwater.Client, model: Any) -> None:
        self._client, self._model = client, model
        self._print = fingerprint(model)  # takes a while, once
        self._lock = threading.Lock()
        self._stays = self.make()

    def make(self) -> Cache:
        with self._lock:
            return Cache(self._client, self._model, fingerprint=self._print, share=self._print is not None)

    def close(self, cache: Cache) -> None:
        with self._lock:
            cache.close()


class One(GenerateManager):  # type: ignore[misc]
    """One request: generates in a thread of the pool, and closes the request's cache at the end."""

    def __init__(self, pool: ThreadPoolExecutor, end: Callable[[], None]) -> None:
        self._pool, self._end = pool, end  # and no thread of its own, which the library's would start

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(self._run, fn, *args, **kwargs)

    def async_submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        return asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    def _run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        finally:
            self._end()


class Requests(GenerateManager):  # type: ignore[misc]
    """The requests to a model. Each has a cache, and so sessions, of its own; what several begin with is shared on the cluster."""

    def __init__(self, pool: ThreadPoolExecutor, caches: Caches) -> None:
        self._pool, self._caches = pool, caches

    def _begin(self, inputs: Any) -> tuple[One, dict[str, Any]]:
        caches, cache = self._caches, self._caches.make()
        return One(self._pool, lambda: caches.close(cache)), {**inputs, "cache": cache}

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        one, given = self._begin(inputs)
        return one.generate_streaming(model, processor, given, *args, **kwargs)

    async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        one, given = self._begin(inputs)
        return await one.generate_non_streaming(model, processor, given, *args, **kwargs)


class State(GenerationState):  # type: ignore[misc]
    """Who generates: there is one model."""

    def __init__(self, caches: Caches, users: int) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(users, "headwater-generate")
        self._requests = Requests(self._pool, caches)

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        return self._requests

    def shutdown(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def application(path: str, client: headwater.Client, users: int) -> tuple[Any, State]:
    """The server's application, for a model that is loaded now, and who generates for it."""
    models = Models(force_model=path)
    model, _ = models.load_model_and_processor(models.process_model_name(path))
    state = State(Caches(client, model), users)
    given = {"model_manager": models, "generation_state": state}
    app = build_server(
        models,
        ChatCompletionHandler(**given),
        completion_handler=CompletionHandler(**given),
        response_handler=ResponseHandler(**given),
        transcription_handler=TranscriptionHandler(models, state),
        systemone_handler=SystemOneHandler(**given),
        generation_state=state,
    )
    return app, state


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m headwater.serve", description="The server of transformers, with each request's context on a cluster.")
    parser.add_argument("path", metavar="PATH", help="the model: a folder or name of transformers")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--coordinator", metavar="HOST:PORT", help="the cluster (default: one on this machine, for this server)")
    where.add_argument("--workers", type=int, default=2, metavar="N", help="workers of the cluster on this machine (default: 2)")
    parser.add_argument("--host", default="localhost", help="where to listen (default: localhost)")
    parser.add_argument("--port", type=int, default=8000, help="the port (default: 8000; 0 takes a free one)")
    parser.add_argument("--users", type=int, default=8, metavar="N", help="requests that generate at once; others wait (default: 8)")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    args = arguments(given)

    def say(line: str) -> None:
        print(f"headwater.serve: {line}", file=sys.stderr, flush=True)

    try:
        with connect(args.coordinator, args.workers, say) as client:
            app, state = application(args.path, client, args.users)
            try:
                uvicorn.run(app, host=args.host, port=args.port, log_level="info")
            finally:
                state.shutdown()
        return 0
    except (headwater.HeadwaterError, OSError, ValueError) as e:
        say(str(e))
        return 1


if __name__ == "__main__":
    sys.exit(main())
