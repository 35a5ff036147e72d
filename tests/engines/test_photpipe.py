"""photpipe as an engine: its files, its command lines, what is made of its answers and faults."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from astropy.io import fits
from photpipe_site import NIGHT, STANDINS, PhotpipeSite
from small_packets import packets

from prepipe.engines.photpipe import engine as photpipe
from prepipe.errors import ConfigError, EngineError
from prepipe.model import Colour, PointingHint
from prepipe.quality.rescue import ANY_CCD, NEIGHBOURS, SAME_CCD

SHIFT = {"default": [-49.3, 29.0]}
PATIENCE_S = 30.0
PLAIN = "pipeloop.pl -red ut200306 3 -id 941420 -redobad"


@pytest.fixture
def site(tmp_path: Path) -> PhotpipeSite:
    return PhotpipeSite(tmp_path)


@pytest.fixture
def packet(tmp_path: Path) -> Path:
    (made,) = packets(tmp_path / "packets", 941420, (3,))
    return made


def hints(*rungs: str, east: float = -49.3, north: float = 29.0) -> list[PointingHint]:
    """The ladder, as the rescue makes it."""
    return [PointingHint(rung, east, north, relaxed) for rung in rungs for relaxed in (False, True)]


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


# files and command lines


def test_the_raw_file_lies_where_photpipe_looks_for_it(site, packet):
    photpipe.reduce(site.order(packet))
    assert site.rawdata(3) == ["COSMOS.g.ut200306.941420_3.fits"]
    path = site.data / "rawdata" / NIGHT / "3" / "COSMOS.g.ut200306.941420_3.fits"
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert (hdus[0].header["CCDNUM"], hdus[0].data.shape) == (3, (48, 64))


def test_a_plain_run_is_asked_for_in_photpipes_words(site, packet):
    photpipe.reduce(site.order(packet))
    assert site.commands("") == [
        PLAIN,
        "pipeview.pl -red ut200306 3 -stage WCSNON -wcs -id 941420",
    ]


def test_settings_add_their_stages_and_keys(tmp_path, packet):
    site = PhotpipeSite(
        tmp_path,
        stages=("FLATTEN", "WCSNON"),
        keys={"WCSNON_CAT": "WEB2MASS_J"},
        rms_max_arcsec=0.25,
    )
    photpipe.reduce(site.order(packet))
    assert site.commands() == [
        "pipeloop.pl -red ut200306 3 -id 941420 -stage FLATTEN,WCSNON "
        "-k WCSNON_RMSMAX 0.25 -k WCSNON_CAT WEB2MASS_J -redobad"
    ]


def test_exposure_numbers_are_padded_on_demand(tmp_path):
    site = PhotpipeSite(tmp_path, expnum_digits=6)
    (packet,) = packets(tmp_path / "packets", 55392, (1,))
    photpipe.reduce(site.order(packet))
    assert site.rawdata(1) == ["COSMOS.g.ut200306.055392_1.fits"]
    assert site.commands("pipeview.pl")[0].endswith("-id 055392")
    assert site.products_made()[0] == "COSMOS.g.ut200306.55392_1.dcmp"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("zero", "bias.ut200306.7_3.fits"), ("dome flat", "domeflat.g.ut200306.7_3.fits")],
)
def test_zeros_and_dome_flats_are_put_where_they_are_looked_for_and_no_more(
    site, tmp_path, kind, name
):
    (packet,) = packets(tmp_path / "packets", 7, (3,), OBSTYPE=kind)
    outcome = photpipe.reduce(site.order(packet))
    assert site.rawdata(3) == [name]
    assert site.commands("") == []
    assert (outcome.grade.colour, outcome.reduction.product) == (Colour.GREEN, None)


def test_image_and_source_table_become_products_under_the_usual_names(site, packet):
    outcome = photpipe.reduce(site.order(packet))
    directory = site.products / NIGHT / "3"
    assert outcome.reduction.product == str(directory / "COSMOS.g.ut200306.941420_3.fits")
    assert outcome.reduction.catalogue == str(directory / "COSMOS.g.ut200306.941420_3.dcmp")
    assert len(site.products_made()) == 2


def test_a_raw_file_that_changed_is_reduced_from_the_start(site, packet, tmp_path):
    photpipe.reduce(site.order(packet))
    photpipe.reduce(site.order(packet))
    (other,) = packets(tmp_path / "others", 941420, (3,), seed=1)
    outcome = photpipe.reduce(site.order(other))
    assert site.commands() == [PLAIN, PLAIN, PLAIN.replace("-redobad", "-redo")]
    with fits.open(other.parent.parent / "raw" / "raw_941420_1.fits") as sent:
        assert (fits.getdata(outcome.reduction.product) == sent[1].data).all()


def test_results_of_the_raw_file_that_was_there_before_are_never_taken_for_new(
    site, packet, tmp_path
):
    photpipe.reduce(site.order(packet))
    (other,) = packets(tmp_path / "others", 941420, (3,), seed=1)
    site.control(fails={"941420_3": "exit 0 without image"})
    with pytest.raises(EngineError, match="left no image"):
        photpipe.reduce(site.order(other))


def test_a_site_may_take_a_later_image_of_the_workspace(tmp_path, packet):
    site = PhotpipeSite(tmp_path, image_ends=(".sw.fits", ".fits"))
    photpipe.reduce(site.order(packet))
    workspace = site.data / "workspace" / NIGHT / "3"
    later = workspace / "COSMOS.g.ut200306.941420_3.sw.fits"
    fits.PrimaryHDU().writeto(later)
    outcome = photpipe.reduce(site.order(packet))
    assert Path(outcome.reduction.product).read_bytes() == later.read_bytes()


# a PIPE_DATA on the node's own disk


@pytest.fixture
def local_site(tmp_path) -> PhotpipeSite:
    site = PhotpipeSite(tmp_path, node_local=True)
    for part in ("rawdata", "workspace"):
        (site.data / part / NIGHT / "3").mkdir(parents=True)
    (site.data / "absphotcat").mkdir()
    (site.data / "rawdata" / NIGHT / "3" / "bias.ut200306.1_3.fits").write_text("zero")
    (site.data / "rawdata" / NIGHT / "3" / "COSMOS.g.ut200306.9_3.fits").write_text("other")
    (site.data / "workspace" / NIGHT / "3" / "biasmaster.fits").write_text("master")
    return site


def test_on_the_nodes_disk_a_ccd_has_what_it_needs_and_no_more(local_site, packet, tmp_path):
    photpipe.reduce(local_site.order(packet, scratch=tmp_path / "scratch"))
    own = tmp_path / "scratch" / "data"
    assert (own / "absphotcat").resolve() == local_site.data / "absphotcat"
    raw = own / "rawdata" / NIGHT / "3"
    assert sorted(path.name for path in raw.iterdir()) == [
        "COSMOS.g.ut200306.941420_3.fits",
        "bias.ut200306.1_3.fits",
    ]
    assert (raw / "bias.ut200306.1_3.fits").is_symlink()
    master = own / "workspace" / NIGHT / "3" / "biasmaster.fits"
    assert master.read_text() == "master"
    assert not master.is_symlink()


def test_on_the_nodes_disk_nothing_of_a_ccd_reaches_the_shared_data(local_site, packet):
    before = sorted(local_site.data.rglob("*"))
    outcome = photpipe.reduce(local_site.order(packet))
    assert sorted(local_site.data.rglob("*")) == before
    assert Path(outcome.reduction.product).exists()


def test_zeros_go_to_the_shared_data_all_the_same(local_site, tmp_path):
    (zero,) = packets(tmp_path / "packets", 2, (3,), OBSTYPE="zero")
    photpipe.reduce(local_site.order(zero))
    assert "bias.ut200306.2_3.fits" in local_site.rawdata(3)


# what photpipe answers


def test_a_good_wcs_is_told_with_its_worse_axis_and_its_shift(site, packet):
    site.control(shift=SHIFT | {"941420_3": [-3.0, 4.0]}, rms={"default": [0.083, 0.091]})
    outcome = photpipe.reduce(site.order(packet))
    found = outcome.reduction
    assert found.wcs_rms_mas == pytest.approx(91.0)
    assert found.wcs_matches == 66
    assert (found.offset_east_arcsec, found.offset_north_arcsec) == (-3.0, 4.0)
    assert found.offset_arcsec == pytest.approx(5.0)
    assert [(one.rung, one.accepted) for one in found.wcs_tries] == [("header", True)]
    assert (outcome.grade.colour, outcome.grade.reasons) == (Colour.GREEN, ())


@pytest.mark.parametrize(
    ("rms", "colour"), [(0.09, Colour.GREEN), (0.19, Colour.YELLOW), (0.24, Colour.ORANGE)]
)
def test_the_residual_has_the_grade_that_photpipes_rules_give_it(site, packet, rms, colour):
    site.control(rms={"default": [rms, 0.05]})
    assert photpipe.reduce(site.order(packet)).grade.colour is colour


def test_a_soft_failure_is_a_red_product_without_a_wcs(site, packet):
    site.control(rms={"default": [0.26, 0.1]})
    outcome = photpipe.reduce(site.order(packet))
    assert {"NO_WCS", "POOR_WCS"} <= set(outcome.reduction.flags)
    assert outcome.reduction.offset_arcsec is None
    assert outcome.grade.colour is Colour.RED
    assert any("from 66 stars" in reason for reason in outcome.grade.reasons)
    assert Path(outcome.reduction.product).exists()


def test_a_hard_failure_is_a_red_product_without_a_wcs(site, packet):
    site.control(shift={"default": [90.0, 0.0]})
    outcome = photpipe.reduce(site.order(packet))
    assert {"NO_WCS", "NO_WCS_STARS"} <= set(outcome.reduction.flags)
    assert outcome.grade.colour is Colour.RED
    assert Path(outcome.reduction.product).exists()


# the ladder


def test_the_whole_ladder_is_climbed_in_the_words_of_the_legacy_system(site, packet):
    site.control(stubborn={"941420_3": {"WCSNON_SEARCHRAD": 1}})
    told = [*hints(SAME_CCD), *hints(NEIGHBOURS, east=-48.4, north=24.2)]
    photpipe.reduce(site.order(packet))
    outcome = photpipe.reduce(site.order(packet, *told))
    base = "pipeloop.pl -red ut200306 3 -id 941420"
    relaxed = "-k WCSNON_CAT_MAXMAG 14.2 -k WCSNON_RMSMAX 0.275 -redobad"
    assert site.commands() == [
        f"{base} -redobad",
        f"{base} -k WCSNON_RADECSHIFT -49.3,29 -redobad",
        f"{base} -stage FLATTEN,WCSNON -k WCSNON_RADECSHIFT -49.3,29 -k WCSNON_SEARCHRAD 15 "
        f"{relaxed}",
        f"{base} -k WCSNON_RADECSHIFT -48.4,24.2 -redobad",
        f"{base} -stage FLATTEN,WCSNON -k WCSNON_RADECSHIFT -48.4,24.2 -k WCSNON_SEARCHRAD 25 "
        f"{relaxed}",
    ]
    assert [(one.rung, one.relaxed) for one in outcome.reduction.wcs_tries] == [
        (SAME_CCD, False),
        (SAME_CCD, True),
        (NEIGHBOURS, False),
        (NEIGHBOURS, True),
    ]
    assert "NO_WCS" in outcome.reduction.flags


def test_the_ladder_ends_where_a_wcs_is_found(site, packet):
    site.control(shift={"default": [-60.0, 29.0]})
    outcome = photpipe.reduce(site.order(packet, *hints(SAME_CCD, NEIGHBOURS)))
    assert len(site.commands()) == 1
    assert outcome.reduction.offset_east_arcsec == -60.0
    assert "NO_WCS" not in outcome.reduction.flags


def test_any_ccd_is_asked_only_where_no_neighbour_can_tell(site, packet):
    site.control(shift={"default": [999.0, 0.0]})
    outcome = photpipe.reduce(site.order(packet, *hints(NEIGHBOURS, ANY_CCD)))
    assert len(site.commands()) == 2
    # told of all the same, or it would be asked for again and again
    passed_over = outcome.reduction.wcs_tries[0]
    assert (passed_over.rung, passed_over.flags) == (ANY_CCD, ("PASSED_OVER",))
    photpipe.reduce(site.order(packet, *hints(ANY_CCD)))
    assert site.commands()[-1].split("-k ")[2] == "WCSNON_SEARCHRAD 25 "


def test_on_the_nodes_disk_the_ladder_works_too(tmp_path, packet):
    site = PhotpipeSite(tmp_path, node_local=True)
    stubborn = {"WCSNON_SEARCHRAD": 25, "WCSNON_CAT_MAXMAG": 14.2}
    site.control(shift=SHIFT, stubborn={"941420_3": stubborn})
    outcome = photpipe.reduce(site.order(packet, *hints(NEIGHBOURS)))
    assert [one.accepted for one in outcome.reduction.wcs_tries] == [False, True]


# faults


def test_a_missing_parameter_is_the_fault_of_the_site_and_is_named(site, packet):
    site.control(lacking=["SW_PLATESCALE"])
    with pytest.raises(ConfigError, match="parameter SW_PLATESCALE not found") as caught:
        photpipe.reduce(site.order(packet))
    # named so, it holds all up instead of being held against this CCD
    assert str(packet) not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("exit 0 without image", r"left no image \(exit status 0\).*cannot open bias, skipping"),
        ("exit 1", r"left no image \(exit status 1\).*flatten died"),
        ("crash", r"ended with status 139, and .* tells nothing of COSMOS"),
        ("half an image", "left a damaged image"),
    ],
)
def test_what_goes_wrong_is_told_with_the_end_of_the_log_and_leaves_no_product(
    site, packet, how, told
):
    site.control(fails={"941420_3": how})
    with pytest.raises(EngineError, match=told):
        photpipe.reduce(site.order(packet))
    assert site.products_made() == []


def test_one_that_hangs_is_killed_with_all_it_started_and_leaves_no_product(tmp_path, packet):
    site = PhotpipeSite(tmp_path, time_limit_s=4.0)
    site.control(fails={"941420_3": "hang"})
    with pytest.raises(EngineError, match=r"killed.*msccmatch goes on and on"):
        photpipe.reduce(site.order(packet))
    end = time.monotonic() + PATIENCE_S
    pids = [int(word) for word in (tmp_path / "commands.pids").read_text().split()]
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < end, "something is still running"
        time.sleep(0.05)
    assert site.products_made() == []


def test_runs_at_the_same_time_do_not_spoil_each_others_astropy_settings(site, tmp_path):
    site.control(meet=2)
    both = packets(tmp_path / "packets", 941420, (3, 4))
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(photpipe.reduce, map(site.order, both)))
    assert [outcome.grade.colour for outcome in outcomes] == [Colour.YELLOW] * 2


def test_a_table_with_banners_and_other_columns_is_understood(site, packet):
    columns = "WCSRAD FILENAME NEW WCSDESH0 WCSRASH0 NASTRO WCSFLAG EWCSYAS EWCSXAS".split()
    site.control(columns=columns, banner=["photpipe v99", "WCSFLAG: see the manual"])
    assert photpipe.reduce(site.order(packet)).reduction.wcs_matches == 66


def test_a_table_without_a_column_is_the_fault_of_the_site(site, packet):
    site.control(columns=["FILENAME", "WCSFLAG", "NASTRO"])
    with pytest.raises(ConfigError, match="has no column EWCSXAS, EWCSYAS, WCSRASH0, WCSDESH0"):
        photpipe.reduce(site.order(packet))


def test_programs_that_are_not_there_are_the_fault_of_the_site(tmp_path, packet):
    site = PhotpipeSite(tmp_path, pipeloop="pipeloop2.pl")
    with pytest.raises(ConfigError, match=r"engines\.photpipe\.pipeloop: no program pipeloop2"):
        photpipe.reduce(site.order(packet))


def test_a_pipe_data_that_is_not_there_is_the_fault_of_the_site(site, packet):
    site.sourceme.write_text(f"export PATH={STANDINS}:$PATH\nunset PIPE_DATA\n")
    with pytest.raises(ConfigError, match=r"set engines\.photpipe\.data"):
        photpipe.reduce(site.order(packet))
    os.utime(site.sourceme, (1, 1))
    site.sourceme.write_text(f"export PATH={STANDINS}:$PATH\nexport PIPE_DATA=/no/where\n")
    with pytest.raises(ConfigError, match="/no/where, is no directory"):
        photpipe.reduce(site.order(packet))
