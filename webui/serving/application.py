"""The server as a Ray Serve application: one process that answers, and replicas that draw."""

# Ray is an extra.
# pyright: reportMissingImports=false

import asyncio
import base64
import logging
import time
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request
from starlette.responses import JSONResponse

from eval.protocols.score import pick_device
from loldu.cluster import gpus_here
from loldu.errors import LoLDUError
from webui.drawing.settings import png_bytes
from webui.drawing.studio import Picture
from webui.serving.keys import Quotas, RefusedError
from webui.serving.order import BASE, Ask, Order, described, read_order
from webui.serving.painter import Outcome, Painter
from webui.serving.plan import Plan
from webui.serving.shelf import NoConceptError, Shelf

logger = logging.getLogger("webui")

NAME = "loldu"
_MOST_BYTES = 2**20
_TRIES = 5
"""Replicas that may die over one picture."""

Painted = tuple[bytes, bool] | str
"""The PNG of a picture and whether it is hidden, or why there is none."""


@serve.deployment
class Draw:
    """A replica: a resident base, whose batches are filled from the queue."""

    def __init__(self, plan: Plan) -> None:
        """Load the base."""
        shelf = Shelf(plan.concepts)
        self._painter = Painter(plan.base, pick_device(None), shelf, plan.resident)
        self.paint.set_max_batch_size(plan.batch_size)  # pyright: ignore
        self.paint.set_batch_wait_timeout_s(plan.batch_wait_s)  # pyright: ignore

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)
    async def paint(self, asks: list[Ask]) -> list[Painted]:
        """Draw the pictures that wait, in as few passes as possible.

        The next ones gather meanwhile. A thread draws, so that health checks are answered.
        """
        return [_painted(each) for each in await asyncio.to_thread(self._painter.draw, asks)]


def _painted(outcome: Outcome) -> Painted:
    if isinstance(outcome, Picture):
        return png_bytes(outcome.image, outcome.settings), outcome.is_hidden
    return str(outcome)


@serve.deployment
class Api:
    """Answers HTTP requests: checks them, has their pictures drawn, and counts the quotas."""

    def __init__(self, draw: Any, plan: Plan) -> None:  # noqa: ANN401
        """Open the folder of concepts.

        Args:
            draw: Handle of the replicas that draw.
            plan: How they draw.
        """
        self._draw = draw
        self._plan = plan
        self._shelf = Shelf(plan.concepts)
        self._quotas = Quotas(plan.keys)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a request; every error is one sentence in OpenAI's shape."""
        try:
            return await self._answer(request)
        except RefusedError as error:
            return _error(str(error), error.status, error.again_s)
        except NoConceptError as error:
            return _error(str(error), 404)
        except BackPressureError:
            sentence = (
                f"{self._plan.max_queue} pictures are waiting, which is the most: ask again in "
                "a few seconds."
            )
            return _error(sentence, 429, 5)
        except LoLDUError as error:
            return _error(str(error), 400)
        except Exception:
            logger.exception("A request failed")
            sentence = "The picture could not be drawn: the log of the server says why."
            return _error(sentence, 500)

    async def _answer(self, request: Request) -> JSONResponse:
        path = request.url.path.rstrip("/")
        if path == "/health":
            return await self._health()
        user = self._quotas.user(request.headers.get("authorization"))
        if path == "/v1/models" or path.startswith("/v1/models/"):
            return JSONResponse(await asyncio.to_thread(self._models, path[11:].strip("/")))
        if path == "/v1/images/generations":
            if request.method != "POST":
                raise RefusedError("Send the request as POST, with JSON.", 405)
            return await self._generate(request, user)
        raise RefusedError(
            f"There is no {path[:100] or '/'}: POST /v1/images/generations draws, GET /v1/models "
            "lists the concepts.",
            404,
        )

    async def _generate(self, request: Request, user: str | None) -> JSONResponse:
        content = await _body(request)
        plan = self._plan
        order = await asyncio.to_thread(
            read_order, content, self._shelf, plan.defaults, plan.most_px
        )
        self._quotas.take(user, len(order.asks))
        try:
            painted = await self._painted(order)
        except BaseException:
            self._quotas.give_back(user, len(order.asks))
            raise
        for each in painted:
            if isinstance(each, str):
                self._quotas.give_back(user, len(order.asks))
                raise LoLDUError(each)
        return JSONResponse({"created": int(time.time()), "data": _data(order, painted)})

    async def _painted(self, order: Order) -> Sequence[Painted]:
        """Have all pictures of a request drawn; the first error ends the wait for the others."""
        tasks = [asyncio.ensure_future(self._paint(ask)) for ask in order.asks]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _paint(self, ask: Ask) -> Painted:
        """Have a picture drawn; if its replica dies, by another one, from the same seed."""
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._draw.paint.remote(ask)
            except RayActorError:
                if attempt == _TRIES:
                    raise
                logger.warning("A replica died; its picture is drawn again.")
                await asyncio.sleep(0.5)
        raise AssertionError("unreachable")

    def _models(self, name: str) -> dict[str, Any]:
        if name:
            return described(self._shelf.facts(name))
        listed = [{"id": each, "object": "model", "owned_by": BASE} for each in self._shelf.names()]
        return {
            "object": "list",
            "data": [{"id": BASE, "object": "model", "owned_by": BASE}, *listed],
        }

    async def _health(self) -> JSONResponse:
        status = await asyncio.to_thread(serve.status)
        states = status.applications[NAME].deployments["Draw"].replica_states
        ready = sum(count for state, count in states.items() if str(state).endswith("RUNNING"))
        said = {"status": "ok" if ready else "no replica draws yet", "replicas": ready}
        return JSONResponse(said, 200 if ready else 503)


async def _body(request: Request) -> bytes:
    """Return the content of a request, which may be hostile.

    Raises:
        RefusedError: If it is longer than 1 MiB.
    """
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _MOST_BYTES:
            raise RefusedError("The request has more than 1 MiB: send only a prompt.", 413)
    return content


def _data(order: Order, painted: Sequence[Painted]) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = []
    for ask, each in zip(order.asks, painted, strict=True):
        png, is_hidden = each
        one = {"b64_json": base64.b64encode(png).decode(), "seed": ask.seed}  # pyright: ignore
        if order.revised_prompt is not None:
            one["revised_prompt"] = order.revised_prompt
        if is_hidden:
            one["hidden"] = True  # the safety checker objects to it
        data.append(one)
    return data


def _error(sentence: str, status: int, again_s: int | None = None) -> JSONResponse:
    kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
    said = {"message": sentence, "type": kinds.get(status, "invalid_request_error"), "code": status}
    headers = {} if again_s is None else {"Retry-After": str(again_s)}
    return JSONResponse({"error": said}, status, headers)


def application(plan: Plan) -> Any:  # noqa: ANN401
    """Return the application, ready for `serve.run`, in the cluster that this process is in."""
    fewest, most = plan.replicas
    scaling: dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        target = float(plan.batch_size)
        limits = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": target}
        scaling = {"autoscaling_config": limits}
    gpus = plan.gpus if plan.gpus is not None else min(1, gpus_here())
    draw = Draw.options(  # pyright: ignore
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        max_ongoing_requests=2 * plan.batch_size,  # one batch is drawn, and the next one waits
        max_queued_requests=plan.max_queue,
        health_check_timeout_s=300,
        **scaling,
    ).bind(plan)
    # One process answers, so that the quotas and the queue are those of the whole server.
    api = Api.options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10_000)  # pyright: ignore
    return api.bind(draw, plan)
