#!/usr/bin/env python3
"""Stands in for hscPipe's: makes a CORR image of a registered raw file, or logs why not."""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import standin
from astropy.io import fits


class FatalError(Exception):
    """What is logged; it changes the exit status with --doraise only."""


def trimmed(header: fits.Header, pixels: np.ndarray) -> tuple[fits.Header, np.ndarray]:
    """The light-sensitive columns and rows; a cut-out as it is."""
    if pixels.shape != (4241, 2144):
        return header, pixels
    columns = [
        np.arange(header[f"T_EFMN{channel}1"] - 1, header[f"T_EFMX{channel}1"])
        for channel in (1, 2, 3, 4)
    ]
    rows = slice(header["T_EFMN12"] - 1, header["T_EFMX12"])
    header = header.copy()
    header["CRPIX1"] -= columns[0][0]
    header["CRPIX2"] -= rows.start
    return header, pixels[rows][:, np.concatenate(columns)]


def raw_of(root: Path, visit: int, ccd: int) -> tuple[Path, str]:
    with sqlite3.connect(root / "registry.sqlite3") as connection:
        query = "SELECT field, dateObs, pointing, filter FROM raw WHERE visit = ? AND ccd = ?"
        row = connection.execute(query, (visit, ccd)).fetchone()
    if row is None:
        print(f"processCcd WARNING: No data found for dataId={{visit: {visit}, ccd: {ccd}}}")
        sys.exit(0)
    field, date, pointing, band = row
    place = f"{pointing:05d}/{band}"
    return root / field / date / place / f"HSC-{visit:07d}-{ccd:03d}.fits", place


def write_config(rerun: Path, told: argparse.Namespace) -> None:
    """The settings of the rerun; others than before are refused."""
    settings = dict(word.split("=", 1) for word in told.config)
    if float(settings.get("isr.fwhm", "1.0")) <= 0:
        sys.exit("error: isr.fwhm is not positive")
    overrides = "" if told.configfile is None else told.configfile.read_text()
    text = overrides + "".join(f"root.{key}={value}\n" for key, value in settings.items())
    file = rerun / "config" / "processCcd.py"
    if file.exists() and file.read_text() != text:
        if not told.clobber_config:
            sys.exit("Config does not match existing task config 'processCcd_config' on disk")
        if not told.no_backup_config:
            file.rename(file.with_name("processCcd.py~1"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def process(root: Path, rerun: Path, visit: int, ccd: int) -> None:
    file, place = raw_of(root, visit, ccd)
    fault = standin.fault()
    if fault == "hang":
        time.sleep(600)
    if fault == "nothing made":
        raise FatalError("Unable to determine a PSF")
    if not (root / "CALIB" / "calibRegistry.sqlite3").exists():
        raise FatalError("Unable to retrieve bias: no calibRegistry.sqlite3")
    with fits.open(file) as hdus:
        header, pixels = trimmed(hdus[0].header, hdus[0].data)
    if fault == "no catalogue":
        print("processCcd.calibrate.astrometry WARNING: hsc.meas.astrom failed ([Errno 2] No such")
        print("file or directory: 'none/andConfig.py')")
        raise FatalError("Unable to solve astrometry for 50, 1_12 ([Errno 2]: 'none/andConfig.py')")
    crval = standin.solved(header)
    if crval is None:
        raise FatalError("Unable to match sources")
    name = f"{visit:07d}-{ccd:03d}"
    figures = {"WCS_RMS": -1.0 if fault == "no sip" else 0.021, "WCS_NOBJ": 87}
    figures |= {"MAGZERO": 27.1, "MAGZERO_RMS": 0.02, "MAGZERO_NOBJ": 80, "ELL_MED": 0.04}
    figures |= {"BGMEAN": 512.5, "SKYSIGMA": 21.0}
    output = rerun / place
    (output / "qa").mkdir(parents=True, exist_ok=True)
    if fault != "no grid":
        grid = np.full((8, 11), np.nan)
        grid[:, 0], grid[:6, 3] = ccd, 4.0
        np.savetxt(output / "qa" / f"seeingGrid-{name}.txt", grid)
    standin.write_exposure(output / "corr" / f"CORR-{name}.fits", header, pixels, crval, **figures)


def main() -> int:
    standin.note_call("hscProcessCcd.py")
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--rerun", required=True)
    parser.add_argument("--id", nargs="+", required=True)
    parser.add_argument("-C", "--configfile", type=Path)
    parser.add_argument("-c", "--config", nargs="+", default=[])
    for flag in ("--clobber-config", "--no-backup-config", "--doraise"):
        parser.add_argument(flag, action="store_true")
    told = parser.parse_args()
    if not (told.root / "_mapper").exists():
        sys.exit("RuntimeError: No mapper provided and no _mapper available")
    which = dict(word.split("=") for word in told.id)
    rerun = told.root / "rerun" / told.rerun
    write_config(rerun, told)
    try:
        process(told.root, rerun, int(which["visit"]), int(which["ccd"]))
    except FatalError as error:
        print(f"processCcd FATAL: Failed on dataId={which}: {error}")
        return 1 if told.doraise and not standin.fault() else 0
    return 0


sys.exit(main())
