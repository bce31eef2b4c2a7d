"""What ComfyUI is given: the nodes, in the order of the menu, and the routes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import graph
from .captioning import EditCaptions, TagPictures, WriteCaptions
from .checkpoints import CheckpointList, LinkCheckpoints
from .data import Concepts, DatasetFolder, DatasetImages, DatasetLatents
from .dataset_views import BucketPreview, CheckDataset, DatasetPictures
from .lora import LoadLora, SaveLora
from .options import Captions, Lora, Objective, Optimizer, Schedule
from .preparing import PrepareDataset, RemoveBackground
from .results import LossReport, RunLoader
from .routes import add_routes
from .scoring import ScorePictures
from .strip import CheckpointStrip
from .train import Train

NODES: tuple[type[io.ComfyNode], ...] = (
    DatasetFolder,
    DatasetImages,
    DatasetLatents,
    Concepts,
    CheckDataset,
    EditCaptions,
    TagPictures,
    DatasetPictures,
    WriteCaptions,
    ScorePictures,
    PrepareDataset,
    RemoveBackground,
    BucketPreview,
    Captions,
    Schedule,
    Optimizer,
    Objective,
    Lora,
    Train,
    RunLoader,
    LossReport,
    SaveLora,
    LoadLora,
    CheckpointList,
    CheckpointStrip,
    LinkCheckpoints,
)


class AtelierExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes; the routes are added with them, since older versions have no other hook."""
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None:  # there is none where a tool lists nodes
            add_routes(server.routes)
            server.add_on_prompt_handler(graph.note)
        return list(NODES)
