"""What happens to artifacts. Those above write theirs with `put_file` and `record`; uploads come over HTTP.

Knowing a digest gives no right to read it: rights are rows (`grant`). An artifact is kept while somebody holds it
(`record`, `hold`), and for `artifact_min_age_seconds` after it was written or uploaded last. What is computed with is
held against its digest first (`whole_file`); what was lost or changed is an `ArtifactDamaged`.
"""

from coordinator.artifacts.service.collection import collect
from coordinator.artifacts.service.integrity import (
    check_whole,
    discard,
    forget_uploads,
    holders,
    is_whole,
    own_header,
    reported,
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
    complete,
    go_on,
    held_up,
    hold_up,
    place_of,
    resume,
    show_upload,
)
from coordinator.artifacts.store.objects import Stored, digest_of

__all__ = [
    "ChunkPlace",
    "Stored",
    "announce",
    "assemble",
    "check_whole",
    "collect",
    "complete",
    "digest_of",
    "discard",
    "forget_uploads",
    "go_on",
    "grant",
    "held_up",
    "hold",
    "hold_up",
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
    "reported",
    "resume",
    "show_upload",
    "uploaded_by",
    "whole_file",
]
