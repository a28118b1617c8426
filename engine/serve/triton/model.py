"""The model `sgl` of the server: one process with both engines and the scheduler."""

import gc
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from engine.serve.triton import backend
from engine.serve.triton.desk import Desk
from engine.serve.triton.metrics import Metrics
from engine.serve.warm_up import warm_up

LOG = logging.getLogger(__name__)


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        reader = backend.open_reader(args)
        pipeline = backend.open_pipeline(args, reader)
        if reader.serve.warm_up:
            warm_up(pipeline)
        self._desk = Desk(pipeline, reader, Metrics())
        # What is there now stays: questions that failed are found sooner among less.
        gc.collect()
        gc.freeze()

    def execute(self, requests: Sequence[Any]) -> None:
        """Take them; answers go out by the desk. Raises nothing: the server would answer all of them once more."""
        for request in requests:
            try:
                self._desk.take(request)
            except Exception as error:
                LOG.error("a request could not be taken", exc_info=error)

    def finalize(self) -> None:
        self._desk.close()
