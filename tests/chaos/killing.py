"""SIGKILL to one process of an installation or of a node, and its return."""

import contextlib
import time

import psutil

from tests.chaos.gate import Reached
from tests.chaos.points import Point
from tests.support.engines import Server
from tests.support.nodes import Consortium, Node
from tests.support.places import Servers, places

EXECUTOR = "spawn_main"
PATIENCE_SECONDS = 60.0
POLLING_SECONDS = 0.05


def kill(nodes: Consortium, point: Point, reached: Reached) -> None:
    """Kills the point's victim; of two nodes the one that reached the step, if one did."""
    match point.victim:
        case "worker":
            _node(nodes, point, reached).kill()
        case "executor":
            _executor(_node(nodes, point, reached)).kill()
        case "redis" | "postgres":
            _server(point).kill()
        case role:
            nodes.installation.kill(role)


def revive(nodes: Consortium, point: Point) -> None:
    """Starts what nobody else starts again: supervisor and agent look after their own."""
    if point.victim == "worker":
        for node in nodes.nodes:
            if node.process is None or node.process.poll() is not None:
                node.start()
    elif point.victim in ("redis", "postgres"):
        _server(point).start()


def _server(point: Point) -> Server:
    found = places()
    assert isinstance(found, Servers), f"there is no {point.victim} in an installation over files"
    return found.redis if point.victim == "redis" else found.postgres


def _node(nodes: Consortium, point: Point, reached: Reached) -> Node:
    family = {reached.pid}
    with contextlib.suppress(psutil.NoSuchProcess):
        family |= {parent.pid for parent in psutil.Process(reached.pid).parents()}
    for node in nodes.nodes:
        if node.process is not None and node.process.pid in family:
            return node
    return nodes.nodes[point.node]


def _executor(node: Node) -> psutil.Process:
    """The node's training process; waits for one that is being started."""
    assert node.process is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for child in psutil.Process(node.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(EXECUTOR in word for word in child.cmdline()):
                    return child
        time.sleep(POLLING_SECONDS)
    raise AssertionError(f"{node.name} has no executor")
