"""The same payload, the same pixels: whatever machine, compiler or version decodes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_wavelet import CODEC, packet_of
from wavelet_answers import ANSWERS, DATA, Answer

from prepipe.codec.pixels import pixel_checksum

DECODE = """
from test_wavelet_machines import ANSWERS, checksum_of
for answer in ANSWERS:
    print(checksum_of(answer))
"""

ASSEMBLE = """
import re
import llvmlite.binding as llvm
from prepipe.codec import wavelet_frame, wavelet_symbols, wavelet_transform
from prepipe.codec.wavelet import compile_kernels

KERNELS = (
    wavelet_transform._synthesise,
    wavelet_symbols._read_runs,
    wavelet_symbols._read_pairs,
    wavelet_symbols._read_bytes,
    wavelet_symbols._read_differences,
    wavelet_symbols._fill,
    wavelet_frame._store,
)
# these words belong to the processor at hand; what they say does no arithmetic on pixels
OWN = re.compile('"target-(cpu|features)"="[^"]*"|immarg ')
FUSED = re.compile(r"v?fn?m(?:add|sub|la|ls)|llvm[.]fma|llvm[.]fmuladd")
LOOSE = re.compile("(fast|contract|reassoc|afn|arcp) (float|double|<)")

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
target = llvm.Target.from_triple({triple!r}).create_target_machine(opt=3, features={features!r})
compile_kernels()
for kernel in KERNELS:
    for code in kernel.inspect_llvm().values():
        assert not LOOSE.search(code), kernel
        plain = OWN.sub("", code).replace("llvm.x86.", "outside.")
        module = llvm.parse_assembly(plain)
        module.triple, module.data_layout = {triple!r}, str(target.target_data)
        text = target.emit_assembly(module)
        assert kernel.__name__ in text
        assert not FUSED.search(text), (kernel, FUSED.search(text).group())
print("none is fused")
"""


def checksum_of(answer: Answer) -> str:
    """Of the pixels that a known payload decodes to here."""
    payload = (DATA / f"{answer.name}.payload").read_bytes()
    decoded = CODEC.decode(payload, packet_of(np.empty(answer.shape, answer.dtype)))
    return pixel_checksum(decoded)


def told_by(program: str, **environment: str) -> str:
    """What another Python says that runs `program`."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.name)
def test_payloads_written_once_decode_to_the_same_pixels_for_ever(answer: Answer) -> None:
    assert checksum_of(answer) == answer.pixels


def test_kernels_that_are_not_compiled_decode_to_the_same_pixels() -> None:
    # plain Python rounds every product, so a compiler that fused one would be found out
    said = told_by(DECODE, NUMBA_DISABLE_JIT="1")
    assert said.split() == [answer.pixels for answer in ANSWERS]


def test_kernels_compiled_for_the_plainest_processor_decode_to_the_same_pixels(
    tmp_path: Path,
) -> None:
    # no vectors wider than the oldest, no fused multiply-add to be had
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    said = told_by(DECODE, NUMBA_CACHE_DIR=str(tmp_path), **generic)
    assert said.split() == [answer.pixels for answer in ANSWERS]


@pytest.mark.parametrize(
    ("triple", "features"),
    [
        ("x86_64-unknown-linux-gnu", "+avx2,+fma"),
        ("aarch64-unknown-linux-gnu", "+neon"),
    ],
)
def test_no_processor_is_given_a_product_fused_with_a_sum(
    tmp_path: Path, triple: str, features: str
) -> None:
    # machines with such an instruction round once where others round twice
    llvm = pytest.importorskip("llvmlite.binding")
    llvm.initialize_all_targets()
    try:
        llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this LLVM knows no {triple}")
    program = ASSEMBLE.format(triple=triple, features=features)
    assert "none is fused" in told_by(program, NUMBA_CACHE_DIR=str(tmp_path))
