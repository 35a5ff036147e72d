"""Pixels to bytes and back; `packet` is the container, one file per CCD."""

from prepipe.codec.base import Codec, Encoded, Unit, codec_names, get_codec, register
from prepipe.codec.external import ExternalCodec
from prepipe.codec.htj2k import Htj2kCodec
from prepipe.codec.jpeg2000 import Jpeg2000Codec
from prepipe.codec.none import NoneCodec
from prepipe.codec.rice import RiceCodec
from prepipe.codec.wavelet import WaveletCodec

__all__ = ["Codec", "Encoded", "Unit", "codec_names", "get_codec", "register"]

register(NoneCodec())
register(RiceCodec())
register(Jpeg2000Codec())
register(Htj2kCodec())
register(ExternalCodec())
register(WaveletCodec())
