"""Artifact service. Other domains write artifacts with `put_file` and `record`; uploads arrive over HTTP.

Knowing a digest gives no right to read it; rights are rows (`grant`). An artifact is kept while it has holds
(`record`, `hold`), and for `artifact_min_age_seconds` after it was last written or uploaded. Files are verified
against their digest before computation (`whole_file`). Lost or changed bytes raise `ArtifactDamaged`.
"""

from coordinator.artifacts.service.collection import collect
from coordinator.artifacts.service.integrity import (
    check_whole,
    discard,
    forget_uploads,
    holders,
    is_whole,
    own_header,
    report_damage,
    whole_file,
)
from coordinator.artifacts.service.references import (
    grant,
    hold,
    is_stored,
    put_file,
    read_header,
    readable,
    record,
    release,
    uploaded_by,
)
from coordinator.artifacts.service.uploads import (
    ChunkPlace,
    announce,
    assemble,
    clear_upload_problem,
    complete,
    place_of,
    report_upload_problem,
    resume,
    show_upload,
    upload_problems,
)
from coordinator.artifacts.store.objects import StoredObject

__all__ = [
    "ChunkPlace",
    "StoredObject",
    "announce",
    "assemble",
    "check_whole",
    "clear_upload_problem",
    "collect",
    "complete",
    "discard",
    "forget_uploads",
    "grant",
    "hold",
    "holders",
    "is_stored",
    "is_whole",
    "own_header",
    "place_of",
    "put_file",
    "read_header",
    "readable",
    "record",
    "release",
    "report_damage",
    "report_upload_problem",
    "resume",
    "show_upload",
    "upload_problems",
    "uploaded_by",
    "whole_file",
]
