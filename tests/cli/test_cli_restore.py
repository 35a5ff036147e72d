"""`prepipe restore` and `prepipe unpack` of what `prepipe archive` sent."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.cluster.receive import Receiver
from prepipe.codec.packet import open_packet, read_header, repack, write_packet
from prepipe.model import Night
from prepipe.simulate import simulate_night
from prepipe.store import Journal

SETTINGS = (
    'telescope.pattern = "*.fits*"\ntelescope.poll_s = 0.05\ntelescope.give_up_s = 0\n'
    "pack.check_every = 0\n"
)


@pytest.fixture
def pushed(run, site_file: Path, raw_file: Path) -> Path:
    """A site that has sent one raw exposure of two CCDs by wavelet."""
    site_file.write_text(SETTINGS)
    shutil.move(raw_file, site_file.parent / "raw" / raw_file.name)
    assert run("push", "--config", site_file, "--once").exit_code == 0
    return site_file


@pytest.fixture
def site(run, pushed: Path) -> Path:
    """The same with residuals in the archive, and the packets taken in."""
    answer = run("archive", "--config", pushed, "--once", "--now", "--json")
    assert json.loads(answer.stdout)["residuals"] == 2
    take_in(pushed)
    return pushed


def take_in(site: Path) -> None:
    journal = Journal(site.parent / "cluster.sqlite")
    assert {event.what.value for event in Receiver(landing(site), journal).look()} <= {"landed"}
    journal.close()


def landing(site: Path) -> Path:
    return site.parent / "landing"


def raw(site: Path) -> Path:
    return site.parent / "raw" / "DECam_00941420.fits"


def base(site: Path, ccd: int) -> Path:
    return landing(site) / "done" / "ut200306" / f"decam_00941420_{ccd}.packet"


def test_an_exposure_comes_back_byte_for_byte(run, site, tmp_path):
    answer = run("restore", 941420, "--config", site, "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.stderr
    assert (tmp_path / "out" / "decam_00941420.fits").read_bytes() == raw(site).read_bytes()


def test_so_it_does_before_the_packets_were_taken_in(run, pushed, tmp_path):
    run("archive", "--config", pushed, "--once", "--now")
    run("restore", 941420, "--config", pushed, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "decam_00941420.fits").read_bytes() == raw(pushed).read_bytes()


def test_a_simulated_exposure_comes_back_as_cfitsio_wants_it(
    run, site_file, tmp_path, funpack_program, fitsverify_program
):
    site_file.write_text(SETTINGS)
    simulate_night(site_file.parent / "raw", 1, (25, 31))
    (original,) = (site_file.parent / "raw").glob("*.fits.fz")
    assert run("push", "--config", site_file, "--once").exit_code == 0
    archived = json.loads(run("archive", "--config", site_file, "--once", "--now", "--json").stdout)
    assert archived["residuals"] == 2
    take_in(site_file)
    out = tmp_path / "out"
    answer = run("restore", "--night", "ut200306", "--config", site_file, "--out", out, "--json")
    (told,) = json.loads(answer.stdout)["files"]
    assert (sorted(told["ccds"]), told["odd_sums"]) == ([25, 31], [])
    restored = Path(told["file"])
    assert restored.read_bytes() == original.read_bytes()
    verified = subprocess.run(
        [fitsverify_program, "-q", restored], capture_output=True, text=True, check=False
    )
    assert "0 errors" in verified.stdout or "OK" in verified.stdout
    subprocess.run([funpack_program, "-O", tmp_path / "plain.fits", restored], check=True)
    with fits.open(tmp_path / "plain.fits") as plain, fits.open(original) as first:
        for ours, theirs in zip(plain[1:], first[1:], strict=True):
            np.testing.assert_array_equal(ours.data, theirs.data)


def test_unpack_puts_a_residual_and_its_packet_together(run, site, tmp_path):
    out = tmp_path / "out"
    archived = sorted((landing(site) / "archive").iterdir())
    answer = run("unpack", *archived, "--config", site, "--out", out)
    assert answer.exit_code == 0, answer.stderr
    with fits.open(raw(site)) as hdus:
        for hdu in hdus[1:]:
            name = f"decam_00941420_{hdu.header['CCDNUM']}.fits"
            np.testing.assert_array_equal(fits.getdata(out / name), hdu.data)


def test_a_base_that_lies_elsewhere_is_told_with_base(run, site, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (landing(site) / "done" / "ut200306").rename(elsewhere)
    archived = sorted((landing(site) / "archive").iterdir())
    words = ("unpack", *archived, "--config", site, "--out", tmp_path / "out")
    assert run(*words).exit_code == 1
    assert run(*words, "--base", elsewhere).exit_code == 0
    words = ("restore", 941420, "--config", site, "--out", tmp_path / "file")
    assert run(*words).exit_code == 1
    assert run(*words, "--base", elsewhere).exit_code == 0
    assert (tmp_path / "file" / "decam_00941420.fits").read_bytes() == raw(site).read_bytes()


def test_a_base_that_is_gone_is_named_with_what_to_do_and_no_file_appears(run, site, tmp_path):
    base(site, 25).unlink()
    answer = run("restore", 941420, "--config", site, "--out", tmp_path / "out")
    assert answer.exit_code == 1
    (line,) = (line for line in answer.stderr.splitlines() if line.startswith("failed"))
    assert "the packet that the residual belongs to is not in" in line
    assert "prepipe retry 941420 --ccd 25 --stage found" in line
    assert list((tmp_path / "out").glob("*")) == []


def test_another_base_is_refused(run, site, tmp_path):
    packets = tmp_path / "packets"
    words = ("--preset", "precise", "--ccds", "25", "--codec", "wavelet")
    run("pack", raw(site), "--out", packets, *words)
    shutil.copy(packets / "decam_00941420_25.packet", base(site, 25))
    answer = run("restore", 941420, "--config", site, "--out", tmp_path / "out")
    assert answer.exit_code == 1
    assert f"the residual belongs to another packet than {base(site, 25)}" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_damaged_residual_or_base_is_named(run, site, tmp_path):
    for path in (base(site, 25), landing(site) / "archive" / "decam_00941420_31.packet"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        answer = run("restore", 941420, "--config", site, "--out", tmp_path / "out")
        assert answer.exit_code == 1
        assert f"{path}: truncated" in answer.stderr
        path.write_bytes(whole)


def test_what_is_not_archived_yet_is_named_and_no_file_appears(run, site, tmp_path):
    (landing(site) / "archive" / "decam_00941420_31.packet").unlink()
    answer = run("restore", 941420, "--config", site, "--out", tmp_path / "out", "--json")
    assert answer.exit_code == 1
    told = json.loads(answer.stdout)
    assert told["files"] == []
    assert "1 of 2 CCDs (31) are not in the archive yet" in told["failed"]["exposure 941420"]


def test_an_exposure_or_night_that_never_came_is_named(run, site, tmp_path):
    words = ("restore", "--config", site, "--out", tmp_path / "out")
    answer = run(*words, 7)
    assert answer.exit_code == 1
    assert "exposure 7: no packet of it has landed" in answer.stderr
    assert "night 2020-03-06: no packet" in run(*words, "--night", "ut200307").stderr
    assert run(*words).exit_code == 2
    assert run(*words, 941420, "--landing", tmp_path / "nowhere").exit_code == 2


def test_originals_that_went_whole_and_packets_without_a_loss_need_no_base(
    run, site_file, raw_file, tmp_path
):
    site_file.write_text(SETTINGS + 'pack.archive = "whole"\n')
    shutil.move(raw_file, site_file.parent / "raw" / raw_file.name)
    run("push", "--config", site_file, "--once")
    run("archive", "--config", site_file, "--once", "--now")
    (landing(site_file) / "decam_00941420_25.packet").unlink()
    out = tmp_path / "out"
    assert run("restore", 941420, "--config", site_file, "--out", out).exit_code == 0
    assert (out / "decam_00941420.fits").read_bytes() == raw(site_file).read_bytes()


def test_packets_that_need_no_other_any_more_can_replace_residuals(run, site, tmp_path):
    archive = landing(site) / "archive"
    words = ("restore", "--night", "2020-03-05", "--config", site)
    assert run(*words, "--packets", "--out", archive).exit_code == 0
    assert {read_header(path).codec for path in archive.iterdir()} == {"none"}
    shutil.rmtree(landing(site) / "done")
    assert run(*words, "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "decam_00941420.fits").read_bytes() == raw(site).read_bytes()


def test_a_residual_of_a_night_beyond_all_calendars_is_like_any_other(run, site, tmp_path):
    path = landing(site) / "archive" / "decam_00941420_25.packet"
    was = open_packet(path)
    last = replace(was.packet.exposure, night=Night(date.max))
    write_packet(path.parent, repack(replace(was, packet=replace(was.packet, exposure=last))))
    answer = run("restore", 941420, "--config", site, "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.stderr


def test_a_file_that_is_there_and_holds_something_else_is_left_alone(run, site, tmp_path):
    there = tmp_path / "out" / "decam_00941420.fits"
    there.parent.mkdir()
    there.write_bytes(raw(site).read_bytes() + bytes(2880))
    before = there.read_bytes()
    words = ("restore", 941420, "--config", site, "--out", there.parent)
    answer = run(*words)
    assert answer.exit_code == 1
    assert f"{there}: is there already and holds something else" in answer.stderr
    assert there.read_bytes() == before
    assert list(there.parent.iterdir()) == [there]
    there.unlink()
    assert [run(*words).exit_code for _ in range(2)] == [0, 0], "the same may be made again"


def test_hdus_that_never_came_are_told_the_last_ones_too(run, site_file, raw_file, tmp_path):
    site_file.write_text(SETTINGS + 'pack.codec = "none"\n')
    with fits.open(raw_file) as hdus:
        focus = [fits.ImageHDU(hdus[1].data, name=f"FS{number}") for number in (1, 2, 3)]
        for number, hdu in enumerate(focus):
            hdu.header["CCDNUM"] = 63 + number
        hdus[0].header["NEXTEND"] = 5
        whole = fits.HDUList([hdus[0], hdus[1], focus[0], hdus[2], *focus[1:]])
        whole.writeto(site_file.parent / "raw" / raw_file.name)
    assert run("push", "--config", site_file, "--once").exit_code == 0
    words = ("restore", 941420, "--config", site_file, "--out", tmp_path / "out")
    (told,) = json.loads(run(*words, "--json").stdout)["files"]
    assert told["hdus_left_out"] == [2, 4, 5]
    assert "2, 4-5" in run(*words).stdout


def test_a_primary_hdu_whose_own_image_is_not_carried_is_told_among_them(
    run, site_file, raw_file, tmp_path
):
    site_file.write_text(SETTINGS + 'pack.codec = "none"\n')
    with fits.open(raw_file) as hdus:
        hdus[0].data = np.zeros((2, 4, 4), np.int16)
        hdus.writeto(site_file.parent / "raw" / raw_file.name)
    assert run("push", "--config", site_file, "--once").exit_code == 0
    words = ("restore", 941420, "--config", site_file, "--out", tmp_path / "out", "--json")
    (told,) = json.loads(run(*words).stdout)["files"]
    assert told["hdus_left_out"] == [0]


def test_an_original_of_before_the_raw_file_was_rewritten_is_none_of_what_was_sent(
    run, site_file, raw_file, tmp_path
):
    site_file.write_text(SETTINGS + 'pack.archive = "whole"\n')
    there = raw(site_file)
    shutil.move(raw_file, there)
    words = ("restore", 941420, "--config", site_file, "--out", tmp_path / "out")
    for answer in ("archived", "rewritten", "archived"):
        if answer == "rewritten":
            with fits.open(there) as hdus:
                for hdu in hdus[1:]:
                    hdu.header["HISTORY"] = "written again"
                    hdu.data[0] += 1
                hdus.writeto(there, overwrite=True)
        run("push", "--config", site_file, "--once")
        if answer == "archived":
            run("archive", "--config", site_file, "--once", "--now")
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert run(*words).exit_code == 0
        else:
            (line,) = run(*words).stderr.splitlines()[:-1]
            assert line.startswith("failed: exposure 941420: the originals of 2 of 2 CCDs (25, 31)")
    assert (tmp_path / "out" / there.name.lower()).read_bytes() == there.read_bytes()


@pytest.mark.parametrize("how", [(), ("--packets",)])
def test_what_lies_in_the_archive_and_lost_something_is_no_original(run, site, tmp_path, how):
    shutil.copy(base(site, 25), landing(site) / "archive")
    answer = run("restore", 941420, "--config", site, "--out", tmp_path / "out", *how)
    assert answer.exit_code == 1
    lost = "exposure 941420: the originals of 1 of 2 CCDs (25) are not in the archive yet"
    assert lost in answer.stderr
    assert "restored" not in answer.stderr
    assert not list((tmp_path / "out").glob("*25.packet"))


def test_a_residual_in_the_landing_directory_does_not_take_the_place_of_its_packet(run, site):
    before = base(site, 25).read_bytes()
    shutil.copy(landing(site) / "archive" / "decam_00941420_25.packet", landing(site))
    journal = Journal(site.parent / "cluster.sqlite")
    (event,) = Receiver(landing(site), journal, settle_s=0.0).look()
    journal.close()
    assert event.what.value == "rejected"
    assert "is a residual, which belongs into archive/" in event.text
    assert base(site, 25).read_bytes() == before


def test_why_originals_go_whole_that_might_be_residuals_is_said_once(run, pushed):
    with sqlite3.connect(pushed.parent / "telescope" / "journal.sqlite") as database:
        database.execute(f"UPDATE ccds SET file_checksum = '{'0' * 32}'")
    database.close()
    answer = run("archive", "--config", pushed, "--once", "--now")
    assert answer.stderr.count("its packet of the night cannot be made again") == 1
    assert "2 archived (0.0 MB), 0 waiting" in answer.stdout


def test_a_dry_run_tells_about_how_many_bytes_go(run, pushed):
    answer = run("archive", "--config", pushed, "--dry-run", "--json")
    told = json.loads(answer.stdout)
    assert {original["as"] for original in told["originals"]} == {"residual"}
    assert told["about_bytes"] == sum(original["about_bytes"] for original in told["originals"])
    assert "residual" in run("archive", "--config", pushed, "--dry-run").stdout
