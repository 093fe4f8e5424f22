"""CatalogService: what a spec may say."""

from __future__ import annotations

from lockstep.server.rpc.interceptors import Context
from lockstep.server.spec import catalog
from lockstep.v1.catalog_service_pb2 import (
    ListDatasetsRequest,
    ListDatasetsResponse,
    ListModelsRequest,
    ListModelsResponse,
    ListOptimizersRequest,
    ListOptimizersResponse,
)
from lockstep.v1.catalog_service_pb2_grpc import CatalogServiceServicer


class CatalogService(CatalogServiceServicer):
    """The models, data sets and optimizers that this server knows."""

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        return ListModelsResponse(models=catalog.models())

    async def ListDatasets(self, request: ListDatasetsRequest, context: Context) -> ListDatasetsResponse:
        return ListDatasetsResponse(datasets=catalog.datasets())

    async def ListOptimizers(self, request: ListOptimizersRequest, context: Context) -> ListOptimizersResponse:
        return ListOptimizersResponse(optimizers=catalog.optimizers())
