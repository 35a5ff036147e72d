"""Work on a node's own disk: only finished products reach the shared one, and blame is just."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from plain_frames import SHAPE, plain_camera, write

from prepipe.config import Calibration
from prepipe.engines.base import Order, Outcome
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.node import Node, on_node
from prepipe.errors import ConfigError, PixelError, PlaceLostError, StorageError
from prepipe.files import atomic_write
from prepipe.model import Ccd as DetectorCcd
from prepipe.model import Colour, Exposure, Grade, Kind, Reduction
from prepipe.model import Night as Date

PACKET = "decam_00000007_03.packet"
MAIN = "ut200306/3/field.g.ut200306.7_3"


@pytest.fixture
def order(tmp_path):
    landed = tmp_path / "landed" / PACKET
    landed.parent.mkdir()
    landed.write_bytes(os.urandom(30000))
    (tmp_path / "products").mkdir()
    return Order(landed, "decam", Calibration(), tmp_path / "products")


@pytest.fixture
def node(tmp_path):
    return Node(str(tmp_path / "own"), shared_slots=1, notes=tmp_path / "notes")


def outcome(order: Order, product: Path) -> Outcome:
    from datetime import UTC, datetime

    start = datetime(2020, 3, 6, 1, tzinfo=UTC)
    exposure = Exposure("decam", 7, Kind.OBJECT, "field", "g", start, 20.0, Date.of(start))
    reduction = Reduction(7, 3, product=str(product), catalogue=f"{product}.cat")
    return Outcome(exposure, DetectorCcd(3, "S3"), reduction, Grade(Colour.GREEN, ()))


def engine(seen: list[Order], order: Order) -> Outcome:
    """Writes three products, the main one first, and rubbish beside them."""
    seen.append(order)
    (order.scratch / "rubbish").write_bytes(b"?")
    product = order.products / MAIN
    for path in (product, product.with_name(product.name + ".cat"), product.with_name("mask")):
        with atomic_write(path) as stream:
            stream.write(order.source.read_bytes()[:5000])
    return outcome(order, product)


def left_in(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.name.startswith("turn")]


def test_an_engine_sees_only_the_nodes_own_disk(order, node, tmp_path):
    seen = []
    on_node(partial(engine, seen), node, order)
    (there,) = seen
    for path in (there.source, there.products, there.scratch):
        assert path.is_relative_to(tmp_path / "own")
    assert there == replace(
        order, source=there.source, products=there.products, scratch=there.scratch
    )


def test_only_products_are_copied_back_and_the_answer_names_them_there(order, node, tmp_path):
    answer = on_node(partial(engine, []), node, order)
    main = order.products / MAIN
    assert answer.reduction.product == str(main)
    assert answer.reduction.catalogue == f"{main}.cat"
    assert sorted(path.name for path in order.products.rglob("*") if path.is_file()) == sorted(
        [main.name, main.name + ".cat", "mask"]
    )
    assert main.read_bytes() == order.source.read_bytes()[:5000]
    assert left_in(tmp_path / "own") == []


def test_the_main_product_appears_last_and_whole(order, node, monkeypatch):
    appeared = []
    rename = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda path, target: appeared.append(target) or rename(path, target)
    )
    on_node(partial(engine, []), node, order)
    there = [path for path in appeared if path.is_relative_to(order.products)]
    assert len(there) == 3
    assert there[-1] == order.products / MAIN


def test_without_a_disk_of_its_own_the_engine_works_in_place(order, tmp_path):
    seen = []
    work = partial(engine, seen)
    there = replace(order, scratch=tmp_path)
    on_node(work, Node(), there)
    assert seen == [there]


def test_nothing_is_left_of_a_failure_and_nothing_reaches_the_shared_disk(order, node, tmp_path):
    def fails(order: Order) -> Outcome:
        engine([], order)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        on_node(fails, node, order)
    assert left_in(tmp_path / "own") == []
    assert list(order.products.iterdir()) == []


def test_an_error_names_the_packet_by_its_own_path(order, node):
    def refuses(order: Order) -> Outcome:
        raise PixelError(f"{order.source}: all pixels are zero")

    with pytest.raises(PixelError) as caught:
        on_node(refuses, node, order)
    assert str(caught.value) == f"{order.source}: all pixels are zero"


def test_a_node_that_does_not_see_a_packet_yet_does_not_condemn_it(order, node):
    order.source.unlink()
    with pytest.raises(PlaceLostError, match=f"does not see {order.source}"):
        on_node(partial(engine, []), node, order)


def test_products_go_to_the_shared_disk_and_not_where_it_should_be_mounted(order, node):
    order.products.rmdir()
    with pytest.raises(PlaceLostError, match=f"does not see {order.products}"):
        on_node(partial(engine, []), node, order)
    assert not order.products.exists()


def test_a_node_that_does_not_see_the_shared_disk_is_a_lost_place(order, node):
    unseen = replace(order, source=Path("/not/mounted") / PACKET)
    with pytest.raises(PlaceLostError, match="does not see /not/mounted"):
        on_node(partial(engine, []), node, unseen)


def test_a_shared_disk_that_takes_no_products_is_no_fault_of_the_node(order, node):
    order.products.rmdir()
    order.products.write_text("a file stands here")
    with pytest.raises(StorageError, match="a file stands"):
        on_node(partial(engine, []), node, order)


def test_a_variable_that_the_node_does_not_know_is_wrong_configuration(order):
    with pytest.raises(ConfigError, match=r"\$NO_SUCH_DISK is not set"):
        on_node(partial(engine, []), Node("$NO_SUCH_DISK"), order)


@pytest.fixture(params=[16, 64])
def small_disk(request, tmp_path):
    """A disk of 16 or 64 KiB; where none can be mounted, files may not be larger than a quarter."""
    disk = tmp_path / "small"
    disk.mkdir()
    size = request.param
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)],
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        yield str(disk)
        subprocess.run(["umount", "-l", str(disk)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size << 8, hard))
    yield str(disk)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_the_disk(order: Order) -> Outcome:
    product = order.products / MAIN
    with atomic_write(product) as stream:
        stream.write(bytes(1 << 20))
    return outcome(order, product)


def fill_scratch(order: Order) -> Outcome:
    (order.scratch / "temporary").write_bytes(bytes(1 << 20))
    return outcome(order, order.products)


@pytest.mark.parametrize("work", [fill_the_disk, fill_scratch])
def test_a_full_disk_of_the_node_is_a_lost_place_and_nothing_is_left(order, small_disk, work):
    with pytest.raises(PlaceLostError):
        on_node(work, Node(small_disk, 1), order)
    assert left_in(Path(small_disk)) == []
    assert list(order.products.iterdir()) == []


def test_a_note_says_where_a_ccd_is_while_it_is_worked_on(order, node, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    notes = []

    def looks(order: Order) -> Outcome:
        notes.append(json.loads((node.notes / PACKET).read_text()))
        return engine([], order)

    on_node(looks, node, order)
    (note,) = notes
    assert (note["node"], note["job"], note["pid"]) == (os.uname().nodename, "17", os.getpid())
    assert list(node.notes.iterdir()) == []


def test_a_note_that_cannot_be_written_is_no_reason_to_stop(order, node, tmp_path):
    (tmp_path / "notes").write_text("a file stands here")
    assert on_node(partial(engine, []), node, order).reduction.product


def planes(products: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(products): path.read_bytes()
        for path in products.rglob("*")
        if path.is_file()
    }


def test_products_are_the_same_byte_by_byte_as_those_made_in_place(tmp_path):
    plain_camera(tmp_path)
    raw = write(tmp_path / "raw", 1, np.full(SHAPE, 500.0), kind="object")
    order = Order(raw, str(tmp_path / "plain.toml"), Calibration(), tmp_path / "in-place", hdu=0)
    one = carry_out(order)
    there = replace(order, products=tmp_path / "by-node")
    there.products.mkdir()
    other = on_node(carry_out, Node(str(tmp_path / "own"), 1), there)
    assert planes(order.products)
    assert planes(order.products) == planes(there.products)
    assert Path(other.reduction.product).is_relative_to(there.products)
    assert one.grade == other.grade
