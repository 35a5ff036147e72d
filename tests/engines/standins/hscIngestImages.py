#!/usr/bin/env python3
"""Stands in for hscPipe's: registers raw files; two that write at once spoil the registry."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sqlite3
import sys
from pathlib import Path

import standin
from astropy.io import fits

COLUMNS = "visit INTEGER, ccd INTEGER, field TEXT, dateObs TEXT, pointing INTEGER, filter TEXT"


def visit_of(header: fits.Header) -> int:
    found = re.fullmatch(r"HSCE(\d{8})", header["EXP-ID"].strip())
    if found is None:
        sys.exit(f"RuntimeError: Unable to interpret EXP-ID: {header['EXP-ID']}")
    return int(found[1])


def ingest(root: Path, file: Path, mode: str, connection: sqlite3.Connection) -> None:
    header = fits.getheader(file, 0)
    if header["NAXIS"] != 2:
        sys.exit(f"RuntimeError: {file} has no image in its first HDU")
    visit, ccd = visit_of(header), header["DET-ID"]
    field = re.sub(r"\W", "_", header["OBJECT"]).upper()
    pointing = int(header["MJD"]) - 55927
    band = header["FILTER01"].upper()
    place = root / field / header["DATE-OBS"] / f"{pointing:05d}" / band
    target = place / f"HSC-{visit:07d}-{ccd:03d}.fits"
    place.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        sys.exit(f"RuntimeError: File {target} already exists; consider --config clobber=True")
    if mode == "link":
        target.symlink_to(file.resolve())
    else:
        shutil.copyfile(file, target)
    row = (visit, ccd, field, header["DATE-OBS"], pointing, band)
    connection.execute("INSERT INTO raw VALUES (?, ?, ?, ?, ?, ?)", row)


def main() -> int:
    standin.note_call("hscIngestImages.py")
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--create", action="store_true")
    parser.add_argument("--mode", choices=("link", "copy"), default="link")
    parser.add_argument("files", nargs="+", type=Path)
    told = parser.parse_args()
    if not (told.root / "_mapper").exists():
        sys.exit("RuntimeError: No mapper provided and no _mapper available")
    if standin.fault() == "ingest does nothing":
        return 0
    busy = told.root / "was-busy"
    if standin.fault() == "busy once" and not busy.exists():
        busy.touch()
        sys.exit("sqlite3.OperationalError: database is locked")
    registry = told.root / "registry.sqlite3"
    with standin.only_writer(told.root) as alone:
        if not alone:
            registry.write_bytes(b"spoilt")
            sys.exit("sqlite3.DatabaseError: database disk image is malformed")
        if not registry.exists() and not told.create:
            sys.exit(f"RuntimeError: no registry {registry}")
        with sqlite3.connect(registry) as connection:
            if told.create:
                connection.execute("DROP TABLE IF EXISTS raw")
                connection.execute(f"CREATE TABLE raw ({COLUMNS}, UNIQUE (visit, ccd))")
            for file in told.files:
                ingest(told.root, file, told.mode, connection)
        connection.close()
    return 0


sys.exit(main())
